package format

import (
	"regexp"
	"strings"
	"time"

	"github.com/tenure-csi/tenure/provider"
)

// awsProfile is the profile that AWS's SDKs and tools take where none is named.
const awsProfile = "default"

// awsKeys are credentials as AWS's readers want them.
type awsKeys struct {
	ID, Secret string
	Token      string // empty for an IAM user's
}

// awsKeyText is what AWS's ids, secret keys and session tokens are made of: no
// reader of an INI file takes any of it for more than a character.
var awsKeyText = regexp.MustCompile(`^[A-Za-z0-9+/=._-]+$`)

// awsLogin takes the keys from data as Vault's AWS engine answers, and as source
// aws-sts does.
func awsLogin(data map[string]any) (k awsKeys, err error) {
	if k.ID, err = awsPart(data, "access_key"); err != nil {
		return k, err
	}
	if k.Secret, err = awsPart(data, "secret_key"); err != nil {
		return k, err
	}
	for _, name := range []string{"session_token", "security_token"} { // the second is Vault's older name
		if text, _ := data[name].(string); text != "" {
			k.Token, err = awsPart(data, name)
			return k, err
		}
	}
	return k, nil
}

func awsPart(data map[string]any, key string) (string, error) {
	text, _ := data[key].(string)
	switch {
	case text == "":
		return "", invalid("format", "the data has no "+quoteName(key)+" with a value; it has "+keyNames(data),
			"use source aws-sts, or read from an AWS engine's creds or sts path")
	case !awsKeyText.MatchString(text):
		return "", invalid("format", "the entry "+quoteName(key)+" has characters that no AWS key has", "use format json or keys")
	}
	return text, nil
}

// awsCredentials writes an AWS shared credentials file with the profile default,
// for AWS_SHARED_CREDENTIALS_FILE. Most readers read it once; those that are to
// see replacements need format aws-credential-process.
func awsCredentials(_ provider.Object, s Secret) ([]byte, error) {
	k, err := awsLogin(s.Data)
	if err != nil {
		return nil, err
	}
	text := "[" + awsProfile + "]\naws_access_key_id = " + k.ID + "\naws_secret_access_key = " + k.Secret + "\n"
	if k.Token != "" {
		text += "aws_session_token = " + k.Token + "\n"
	}
	return []byte(text), nil
}

// awsProcess writes a directory with an AWS config file, for AWS_CONFIG_FILE, and
// the answer of the process that it names: every SDK asks again when the
// Expiration comes near. Without a known end, as of an IAM user's keys under a
// renewable lease, there is no Expiration, and SDKs ask once. The form is that of
// "Sourcing credentials with an external process" in AWS's SDK reference.
func awsProcess(o provider.Object, s Secret) ([]File, error) {
	k, err := awsLogin(s.Data)
	if err != nil {
		return nil, err
	}
	answer := map[string]any{"Version": 1, "AccessKeyId": k.ID, "SecretAccessKey": k.Secret}
	if k.Token != "" {
		answer["SessionToken"] = k.Token
	}
	if !s.Expires.IsZero() {
		answer["Expiration"] = s.Expires.UTC().Format(time.RFC3339)
	}
	text, err := exactJSON(answer)
	if err != nil {
		return nil, err
	}
	config := "[" + awsProfile + "]\ncredential_process = /bin/cat " + awsAnswer(o) + "\n"
	if region := o.Read.AWS.Region; region != "" {
		config += "region = " + region + "\n"
	}
	return []File{{o.Name + "/config", []byte(config)}, {o.Name + "/credentials.json", append(text, '\n')}}, nil
}

// awsAnswer is the answer's file as the application sees it.
func awsAnswer(o provider.Object) string {
	return strings.TrimSuffix(o.MountPath, "/") + "/" + o.Name + "/credentials.json"
}

// shellWord is a path that a shell and every splitter of a command take as it is.
var shellWord = regexp.MustCompile(`^[A-Za-z0-9._/-]+$`)

func checkAWSProcess(o provider.Object) error {
	switch {
	case o.MountPath == "":
		return invalid("mountPath", "format aws-credential-process names a file, and where the application sees it is not known",
			"set the SPC's parameter mountPath to the container's mountPath of the volume")
	case !shellWord.MatchString(awsAnswer(o)):
		return invalid("mountPath", "the path has characters that AWS's SDKs would give to a shell", "use letters, digits and . _ - / in it")
	case !validPath(o.Name + "/credentials.json"):
		return invalid("objectName", "the name leaves no room for the files of the format below it", "shorten it")
	}
	return nil
}

package provider

import (
	"slices"
	"strconv"
	"strings"
)

// The words of the interface.
var (
	parameters = []string{
		"roleName", "vaultAddress", "vaultNamespace", "vaultCACertPath", "vaultCADirectory", "vaultTLSServerName",
		"vaultTLSClientCertPath", "vaultTLSClientKeyPath", "vaultKubernetesMountPath", "vaultAuthMountPath",
		"audience", "vaultSkipTLSVerify", "objects", "vaultAuthMethod", "awsIdentity", "vaultAwsRoleArn", "defaults", "mountPath",
		"tenants", "tenantsFrom", "onTenantFailure",
	}
	// legacyParameters are ignored by the HashiCorp provider too.
	legacyParameters = []string{"kubernetesServiceAccountPath", "vaultCAPem"}

	fields = []string{
		"objectName", "secretPath", "secretKey", "method", "secretArgs", "filePermission", "encoding", "source", "format",
		"template", "connection", "owner", "group", "refreshInterval", "overlap",
		"identity", "roleArn", "sessionPolicy", "sessionTags", "region", "ttl", "audience",
	}
	// vaultFields and awsFields have a meaning with these sources only.
	vaultFields = []string{"secretPath", "method", "secretArgs"}
	awsFields   = []string{"identity", "roleArn", "sessionPolicy", "sessionTags", "region", "ttl", "audience"}

	connectionFields = []string{"host", "port", "dbname", "user", "params"}

	sources    = []string{vaultSource, stsSource, rdsSource}
	identities = []string{PodIdentity, AgentIdentity, NodeIdentity}
	methods    = []string{"GET", "PUT", "POST"}
	encodings  = []string{"utf-8", "base64", "hex"}
	formats    = []string{
		"raw", "json", "keys", "env", "pem", "pg-service", "pgpass", "uri", "my-cnf", "template",
		"aws-credentials", "aws-credential-process",
	}
	logins        = []string{"kubernetes", "jwt", approle, awsLogin}
	awsIdentities = []string{PodIdentity, NodeIdentity}

	tenantFailures = []string{"skip", "fail"}
)

// awsLogin is the login method that takes a signed request to AWS.
const awsLogin = "aws"

// The sources.
const (
	vaultSource = "vault"
	stsSource   = "aws-sts"
	rdsSource   = "rds-iam"
)

// nearest returns the known word that word was probably meant to be: at most two
// letters away, or one in a word of four or five, whatever the case. Empty: none.
func nearest(word string, known ...[]string) string {
	const most = 2
	best, found := most+1, ""
	for _, k := range slices.Concat(known...) {
		if diff := len(k) - len(word); diff < -most || diff > most {
			continue
		}
		if d := distance(strings.ToLower(word), strings.ToLower(k)); d < best && d <= len(k)/3 {
			best, found = d, k
		}
	}
	return found
}

// distance is the Levenshtein distance in bytes.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			substituted := diagonal
			if a[i] != b[j] {
				substituted++
			}
			diagonal = row[j+1]
			row[j+1] = min(substituted, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// didYouMean is the remedy for a word that is not known.
func didYouMean(word string, known []string) string {
	if k := nearest(word, known); k != "" {
		return "did you mean " + k + "?"
	}
	return "use one of " + strings.Join(known, ", ")
}

// quote renders hostile text on one line, within bounds and quotes.
func quote(s string) string { return `"` + brief(s) + `"` }

// brief is quote for the places that put the quotes themselves.
func brief(s string) string {
	const most = 128
	end := ""
	if len(s) > most {
		s, end = strings.ToValidUTF8(s[:most], ""), "…"
	}
	quoted := strconv.Quote(s)
	return quoted[1:len(quoted)-1] + end
}

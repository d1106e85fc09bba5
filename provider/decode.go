package provider

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"io/fs"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"sigs.k8s.io/secrets-store-csi-driver/provider/v1alpha1"
)

// The limits of a request. An SPC and a pod are each at most 1.5 MiB in etcd and
// a Secret 1 MiB; honest attributes are a few KiB.
const (
	maxAttributesBytes = 256 << 10
	maxAttributes      = 256
	maxPermission      = 0o777
)

// The keys of the attributes that the driver and kubelet set.
const (
	podNameKey        = "csi.storage.k8s.io/pod.name"
	podNamespaceKey   = "csi.storage.k8s.io/pod.namespace"
	podUIDKey         = "csi.storage.k8s.io/pod.uid"
	serviceAccountKey = "csi.storage.k8s.io/serviceAccount.name"
	tokensKey         = "csi.storage.k8s.io/serviceAccount.tokens"
	spcKey            = "secretProviderClass"
)

var (
	dnsLabel = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)
	dnsName  = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)
	// A UID is opaque to Kubernetes: static pods have a plain hash.
	podUID = regexp.MustCompile(`^[A-Za-z0-9-]{1,128}$`)
)

// Decode checks a Mount call and splits it into what may be kept and what is
// held in memory only. providerName is the name of the socket; kubeletDir is
// kubelet's root directory, absolute and clean, with symbolic links as kubelet
// writes it. The target path is compared as text; whether it is a tmpfs and not
// a link is for the writer of the volume. Errors are *Error or Errors of class
// Invalid. It may be called from many goroutines at once.
func Decode(req *v1alpha1.MountRequest, providerName, kubeletDir string) (Request, error) {
	if n := len(req.GetAttributes()); n > maxAttributesBytes {
		return Request{}, invalid("the SPC's parameters take "+strconv.Itoa(n)+" bytes as JSON, more than 256 KiB", "split the SPC into several volumes")
	}
	attributes, ok := flatJSON(req.GetAttributes())
	if !ok || len(attributes) == 0 {
		return Request{}, invalid("the attributes of the Mount call are not a JSON object of strings with unique keys", "mount through the Secrets Store CSI driver")
	}
	if err := checkSize(attributes); err != nil {
		return Request{}, err
	}
	id, err := identity(attributes[tokensKey], req.GetSecrets())
	if err != nil {
		return Request{}, err
	}
	delete(attributes, tokensKey)
	pod, err := podOf(attributes)
	if err != nil {
		return Request{}, err
	}
	mode, err := permission(req.GetPermission())
	if err != nil {
		return Request{}, err
	}
	if err := checkTarget(req.GetTargetPath(), kubeletDir, pod.UID); err != nil {
		return Request{}, err
	}
	return Request{
		Provider:   providerName,
		Pod:        pod,
		Target:     req.GetTargetPath(),
		Mode:       mode,
		Attributes: attributes,
		SpecHash:   specHash(attributes, mode, providerName),
		Identity:   id,
	}, nil
}

// Edited returns the request as the driver would send it for other parameters of
// the SecretProviderClass: those given, overlaid by the pod's volumeAttributes.
// What the driver and kubelet add stays as it is. Its errors are *Error of class
// Invalid, and the request is complete with them too.
func (r Request) Edited(parameters map[string]string) (Request, error) {
	attributes := make(map[string]string, len(parameters))
	for k, v := range parameters {
		if !drivers(k) {
			attributes[k] = v
		}
	}
	for k, v := range r.Attributes {
		if drivers(k) {
			attributes[k] = v
		}
	}
	r.Attributes = attributes
	r.SpecHash = specHash(r.Attributes, r.Mode, r.Provider)
	return r, checkSize(r.Attributes)
}

// checkSize bounds decoded attributes.
func checkSize(attributes map[string]string) error {
	n := 0
	for k, v := range attributes {
		n += len(k) + len(v)
	}
	if n > maxAttributesBytes {
		return invalid("the SPC's parameters take "+strconv.Itoa(n)+" bytes, more than 256 KiB", "split the SPC into several volumes")
	}
	if len(attributes) > maxAttributes {
		return invalid("the SPC has more than 256 parameters", "put several secrets into the one parameter objects")
	}
	return nil
}

// SPCName returns the name of the SecretProviderClass that attributes are of.
func SPCName(attributes map[string]string) string { return attributes[spcKey] }

// flatJSON decodes a JSON object that holds nothing but strings under different
// keys. encoding/json alone takes null for "" and the last of two equal keys.
// Its errors quote the input, so there is none to pass on.
func flatJSON(text string) (map[string]string, bool) {
	stringsSeen, objects, quoted := 0, 0, false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			if quoted = !quoted; quoted {
				stringsSeen++
			}
		case quoted:
		case c == '{':
			objects++
		case !strings.ContainsRune("}:, \t\r\n", rune(c)):
			return nil, false
		}
	}
	var decoded map[string]string
	if objects != 1 || json.Unmarshal([]byte(text), &decoded) != nil {
		return nil, false
	}
	return decoded, 2*len(decoded) == stringsSeen
}

// identity collects what the pod can prove. From Kubernetes 1.35 on kubelet can
// hand the tokens over in secrets, where a pod's author can't put them by
// volumeAttributes: they win.
func identity(tokensJSON, secretsJSON string) (Identity, error) {
	var id Identity
	if secretsJSON != "" && secretsJSON != "null" {
		secrets, ok := flatJSON(secretsJSON)
		if !ok {
			return id, invalid("the secrets of the Mount call are not a JSON object of strings with unique keys", "mount through the Secrets Store CSI driver")
		}
		if tokens, ok := secrets[tokensKey]; ok {
			tokensJSON = tokens
			delete(secrets, tokensKey)
		}
		id.Secrets = make(map[string]Secret, len(secrets))
		for k, v := range secrets {
			id.Secrets[k] = Secret(v)
		}
	}
	var err error
	id.Tokens, err = parseTokens(tokensJSON)
	return id, err
}

func podOf(attributes map[string]string) (Pod, error) {
	pod := Pod{
		Name:           attributes[podNameKey],
		Namespace:      attributes[podNamespaceKey],
		UID:            attributes[podUIDKey],
		ServiceAccount: attributes[serviceAccountKey],
	}
	var errs Errors
	check := func(what, value string, valid bool) {
		if value == "" {
			errs = append(errs, invalid("the Mount call names no "+what, "set podInfoOnMount: true in the CSIDriver secrets-store.csi.k8s.io"))
		} else if !valid {
			errs = append(errs, invalid("the Mount call's "+what+" "+quote(value)+" is none that Kubernetes allows", "leave csi.storage.k8s.io/* out of the pod's volumeAttributes"))
		}
	}
	check("pod name", pod.Name, len(pod.Name) <= 253 && dnsName.MatchString(pod.Name))
	check("pod namespace", pod.Namespace, dnsLabel.MatchString(pod.Namespace))
	check("pod UID", pod.UID, podUID.MatchString(pod.UID))
	check("service account", pod.ServiceAccount, len(pod.ServiceAccount) <= 253 && dnsName.MatchString(pod.ServiceAccount))
	if errs != nil {
		return Pod{}, errs
	}
	return pod, nil
}

// permission reads a mode as the driver sends it: a JSON number, so decimal and
// without leading zeros.
func permission(text string) (fs.FileMode, error) {
	mode, err := strconv.ParseUint(text, 10, 32)
	if err != nil || mode > maxPermission || strconv.FormatUint(mode, 10) != text {
		return 0, invalid("the Mount call's permission "+quote(text)+" is not a decimal number from 0 to 511", "mount through the Secrets Store CSI driver, which sends 420")
	}
	return fs.FileMode(mode), nil
}

// checkTarget accepts <kubelet>/pods/<uid>/volumes/kubernetes.io~csi/<volume>/mount
// and nothing else.
func checkTarget(target, kubeletDir, uid string) error {
	const wanted = "/pods/<pod UID>/volumes/kubernetes.io~csi/<volume>/mount"
	remedy := "start Tenure with kubelet's own root directory, written as kubelet writes it"
	if rest, ok := strings.CutPrefix(target, filepath.Join(kubeletDir, "pods")+"/"); ok {
		parts := strings.Split(rest, "/")
		if len(parts) == 5 && parts[1] == "volumes" && parts[2] == "kubernetes.io~csi" && parts[4] == "mount" &&
			len(parts[3]) <= 253 && dnsName.MatchString(parts[3]) {
			if parts[0] == uid {
				return nil
			}
			return invalid("the target path is of pod UID "+quote(parts[0])+", the Mount call of "+quote(uid), "mount through the Secrets Store CSI driver")
		}
		remedy = "mount through the Secrets Store CSI driver"
	}
	return invalid("the target path "+quote(target)+" is not "+kubeletDir+wanted, remedy)
}

// specHash is over everything that Parse reads, each part preceded by its length,
// so that no two specs give the same bytes.
func specHash(attributes map[string]string, mode fs.FileMode, providerName string) string {
	sized := func(b []byte, s string) []byte {
		return append(binary.AppendUvarint(b, uint64(len(s))), s...)
	}
	b := sized(nil, providerName)
	b = binary.AppendUvarint(b, uint64(mode))
	for _, k := range slices.Sorted(maps.Keys(attributes)) {
		if !drivers(k) {
			b = sized(sized(b, k), attributes[k])
		}
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// drivers reports whether a parameter is the driver's or kubelet's, of no meaning to Parse.
func drivers(parameter string) bool {
	return parameter == spcKey || parameter == "providerName" || strings.HasPrefix(parameter, "csi.storage.k8s.io/")
}

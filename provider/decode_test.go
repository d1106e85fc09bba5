package provider

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/secrets-store-csi-driver/provider/v1alpha1"
)

func TestDecodeRefuses(t *testing.T) {
	raw := func(text string) func(*v1alpha1.MountRequest) {
		return func(r *v1alpha1.MountRequest) { r.Attributes = text }
	}
	attr := func(key, value string) func(*v1alpha1.MountRequest) {
		return func(r *v1alpha1.MountRequest) {
			text, _ := json.Marshal(attributes(map[string]string{key: value}))
			r.Attributes = string(text)
		}
	}
	secrets := func(text string) func(*v1alpha1.MountRequest) {
		return func(r *v1alpha1.MountRequest) { r.Secrets = text }
	}
	mode := func(text string) func(*v1alpha1.MountRequest) {
		return func(r *v1alpha1.MountRequest) { r.Permission = text }
	}
	path := func(text string) func(*v1alpha1.MountRequest) {
		return func(r *v1alpha1.MountRequest) { r.TargetPath = text }
	}
	many := map[string]string{}
	for i := range maxAttributes {
		many[fmt.Sprint("k", i)] = "v"
	}
	manyJSON, err := json.Marshal(attributes(many))
	require.NoError(t, err)
	volume := kubelet + "/pods/" + uid + "/volumes/kubernetes.io~csi/"

	var rows []string
	for _, tc := range []struct {
		name  string
		spoil func(*v1alpha1.MountRequest)
	}{
		{"attributes empty", raw("")},
		{"attributes null", raw("null")},
		{"attributes empty object", raw("{}")},
		{"attributes array", raw(`["a"]`)},
		{"attributes a string", raw(`"a"`)},
		{"attributes number value", raw(`{"a":1}`)},
		{"attributes null value", raw(`{"a":null}`)},
		{"attributes bool value", raw(`{"a":true}`)},
		{"attributes nested object", raw(`{"a":{"b":"c"}}`)},
		{"attributes nested array", raw(`{"a":["c"]}`)},
		{"attributes duplicate key", raw(`{"a":"b","a":"b"}`)},
		{"attributes duplicate key escaped", raw(`{"a":"b","\u0061":"c"}`)},
		{"attributes cut", raw(`{"a":"b`)},
		{"attributes trailing text", raw(`{"a":"b"}{}`)},
		{"attributes over 256 KiB", attr("x", strings.Repeat("x", maxAttributesBytes))},
		{"attributes many", raw(string(manyJSON))},
		{"secrets cut", secrets(`{"role_id":"canary`)},
		{"secrets nested", secrets(`{"role_id":{"canary":"x"}}`)},
		{"secrets duplicate key", secrets(`{"a":"canary","a":"canary"}`)},
		{"tokens malformed", attr(tokensKey, `{"vault":"canary"}`)},
		{"tokens bad time", attr(tokensKey, `{"vault":{"token":"canary","expirationTimestamp":"soon"}}`)},
		{"tokens in secrets malformed", secrets(`{"csi.storage.k8s.io/serviceAccount.tokens":"canary"}`)},
		{"permission empty", mode("")},
		{"permission octal", mode("0644")},
		{"permission text", mode("abc")},
		{"permission quoted", mode(`"420"`)},
		{"permission setuid", mode("2541")},
		{"permission 512", mode("512")},
		{"permission negative", mode("-1")},
		{"permission signed", mode("+420")},
		{"permission huge", mode("99999999999999999999")},
		{"target empty", path("")},
		{"target relative", path(strings.TrimPrefix(target, "/"))},
		{"target with ..", path(volume + "secrets/../secrets/mount")},
		{"target volume ..", path(volume + "../mount")},
		{"target doubled slash", path(volume + "/secrets/mount")},
		{"target deeper", path(target + "/x")},
		{"target trailing slash", path(target + "/")},
		{"target elsewhere", path("/etc/pods/" + uid + "/volumes/kubernetes.io~csi/secrets/mount")},
		{"target other plugin", path(kubelet + "/pods/" + uid + "/volumes/kubernetes.io~empty-dir/secrets/mount")},
		{"target with newline", path(volume + "a\nb/mount")},
		{"target of another pod", path(strings.Replace(target, uid, "other-uid", 1))},
		{"no pod name", attr(podNameKey, "-")},
		{"no namespace", attr(podNamespaceKey, "-")},
		{"no pod uid", attr(podUIDKey, "-")},
		{"no service account", attr(serviceAccountKey, "-")},
		{"namespace with CR LF", attr(podNamespaceKey, "shop\r\nX-Vault-Token: x")},
		{"namespace with dots", attr(podNamespaceKey, "shop.other")},
		{"namespace too long", attr(podNamespaceKey, strings.Repeat("n", 64))},
		{"pod name upper case", attr(podNameKey, "Web")},
		{"pod name too long", attr(podNameKey, strings.Repeat("n", 254))},
		{"service account with slash", attr(serviceAccountKey, "a/b")},
		{"service account with ..", attr(serviceAccountKey, "a..b")},
		{"pod uid climbing", attr(podUIDKey, "..")},
	} {
		req := mountRequest(t, attributes(nil))
		tc.spoil(req)
		r, err := Decode(req, "tenure", kubelet)
		require.Error(t, err, tc.name)
		require.Equal(t, Request{}, r, tc.name)
		class, known := classOf(err)
		require.True(t, known && class == Invalid, tc.name)
		require.NotContains(t, err.Error(), "canary", tc.name)
		rows = append(rows, tc.name+": "+err.Error())
	}
	golden(t, "decode.golden", rows)
}

func TestDecode(t *testing.T) {
	tokens := `{"vault":{"token":"t1","expirationTimestamp":"2026-01-02T03:04:05Z"},"other":{"token":"t2"}}`
	req := mountRequest(t, attributes(map[string]string{tokensKey: tokens}))
	req.Secrets = `{"role_id":"r","secret_id":"s"}`
	r, err := Decode(req, "vault", kubelet)
	require.NoError(t, err)
	require.Equal(t, Request{
		Provider:   "vault",
		Pod:        testPod,
		Target:     target,
		Mode:       0o644,
		Attributes: attributes(nil),
		SpecHash:   r.SpecHash,
		Identity: Identity{
			Tokens: map[string]Token{
				"vault": {Value: "t1", Expires: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)},
				"other": {Value: "t2"},
			},
			Secrets: map[string]Secret{"role_id": "r", "secret_id": "s"},
		},
	}, r)
	require.NotContains(t, fmt.Sprintf("%+v %#v %q", r, r, r), "t1", "a Request prints without secrets")
}

func TestDecodeTokensInSecrets(t *testing.T) {
	req := mountRequest(t, attributes(map[string]string{tokensKey: `{"vault":{"token":"author's"}}`}))
	secrets, err := json.Marshal(map[string]string{tokensKey: `{"vault":{"token":"kubelet's"}}`, "user": "u"})
	require.NoError(t, err)
	req.Secrets = string(secrets)
	r, err := Decode(req, "tenure", kubelet)
	require.NoError(t, err)
	require.Equal(t, "kubelet's", r.Identity.Tokens["vault"].Value.Reveal())
	require.Equal(t, map[string]Secret{"user": "u"}, r.Identity.Secrets)
	require.NotContains(t, r.Attributes, tokensKey)
}

func TestDecodeAllows(t *testing.T) {
	for name, change := range map[string]func(*v1alpha1.MountRequest){
		"no secrets":     func(r *v1alpha1.MountRequest) { r.Secrets = "" },
		"empty secrets":  func(r *v1alpha1.MountRequest) { r.Secrets = "{}" },
		"permission 0":   func(r *v1alpha1.MountRequest) { r.Permission = "0" },
		"permission 511": func(r *v1alpha1.MountRequest) { r.Permission = "511" },
		"spaces in the JSON": func(r *v1alpha1.MountRequest) {
			r.Attributes = " " + strings.ReplaceAll(r.Attributes, `","`, "\" ,\n\t\"")
		},
		"quotes in a value": func(r *v1alpha1.MountRequest) { r.Attributes = `{"x":"a\"{[1,2]}\\",` + r.Attributes[1:] },
	} {
		req := mountRequest(t, attributes(nil))
		change(req)
		_, err := Decode(req, "tenure", kubelet)
		require.NoError(t, err, name)
	}
}

func TestSpecHash(t *testing.T) {
	hash := func(provider, permission string, more map[string]string) string {
		req := mountRequest(t, attributes(more))
		req.Permission = permission
		r, err := Decode(req, provider, kubelet)
		require.NoError(t, err)
		return r.SpecHash
	}
	same := hash("tenure", "420", nil)
	require.Len(t, same, 64)
	for name, other := range map[string]string{
		"tokens":    hash("tenure", "420", map[string]string{tokensKey: `{"vault":{"token":"x"}}`}),
		"driver's":  hash("tenure", "420", map[string]string{"csi.storage.k8s.io/ephemeral": "false"}),
		"SPC name":  hash("tenure", "420", map[string]string{spcKey: "renamed"}),
		"pod name":  hash("tenure", "420", map[string]string{podNameKey: "web-1"}),
		"provider ": hash("tenure", "420", map[string]string{"providerName": "x"}),
	} {
		require.Equal(t, same, other, name)
	}
	seen := map[string]bool{same: true}
	for name, other := range map[string]string{
		"provider": hash("vault", "420", nil),
		"mode":     hash("tenure", "384", nil),
		"role":     hash("tenure", "420", map[string]string{"roleName": "web2"}),
		"new key":  hash("tenure", "420", map[string]string{"a": "b"}),
		"moved":    hash("tenure", "420", map[string]string{"ab": ""}),
	} {
		require.False(t, seen[other], name)
		seen[other] = true
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(`{"a":"b"}`, "null", target, "420")
	good, err := json.Marshal(attributes(map[string]string{tokensKey: `{"vault":{"token":"t"}}`}))
	require.NoError(f, err)
	f.Add(string(good), `{"a":"b"}`, target, "420")
	f.Fuzz(func(t *testing.T, attributes, secrets, target, permission string) {
		r, err := Decode(&v1alpha1.MountRequest{Attributes: attributes, Secrets: secrets, TargetPath: target, Permission: permission}, "tenure", kubelet)
		if err != nil {
			class, known := classOf(err)
			require.True(t, known && class == Invalid)
			return
		}
		require.LessOrEqual(t, int(r.Mode), 0o777)
		require.Contains(t, r.Target, kubelet+"/pods/"+r.Pod.UID+"/")
		require.NotContains(t, r.Target, "..")
		require.NotContains(t, r.Attributes, tokensKey)
		// The oracle for "an object of strings, each key once" is the token stream.
		keys := map[string]bool{}
		decoder := json.NewDecoder(bytes.NewReader([]byte(attributes)))
		for i := -1; ; i++ {
			token, err := decoder.Token()
			if err != nil || token == json.Delim('}') {
				break
			}
			text, isText := token.(string)
			require.True(t, isText || i == -1)
			if i >= 0 && i%2 == 0 {
				require.False(t, keys[text], "key twice")
				keys[text] = true
			}
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	var list strings.Builder
	for i := range 8 {
		fmt.Fprintf(&list, "- objectName: file-%d\n  secretPath: database/creds/role-%d\n  secretKey: password\n  filePermission: 0640\n", i, i)
	}
	req := mountRequest(b, attributes(map[string]string{
		"objects": list.String(),
		tokensKey: `{"vault":{"token":"` + jwt(strings.Repeat(`{"x":1}`, 100)) + `","expirationTimestamp":"2026-01-02T03:04:05Z"}}`,
	}))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Decode(req, "tenure", kubelet); err != nil {
			b.Fatal(err)
		}
	}
}

func TestEditedRequestIsWhatTheDriverWouldSend(t *testing.T) {
	decode := func(change map[string]string) Request {
		text, err := json.Marshal(attributes(change))
		require.NoError(t, err)
		r, err := Decode(&v1alpha1.MountRequest{Attributes: string(text), TargetPath: target, Permission: "420", Secrets: "null"}, "tenure", kubelet)
		require.NoError(t, err)
		return r
	}
	was, want := decode(map[string]string{"roleName": "a", "audience": "x"}), decode(map[string]string{"roleName": "b", "objects": "[]"})
	parameters := map[string]string{}
	for k, v := range want.Attributes {
		parameters[k] = v
	}
	for k := range parameters {
		if drivers(k) {
			parameters[k] = "the SPC author's"
		}
	}
	got, err := was.Edited(parameters)
	require.NoError(t, err)
	require.Equal(t, want.SpecHash, got.SpecHash)
	require.Equal(t, want.Attributes, got.Attributes, "what the driver and kubelet set stays")
	require.Equal(t, "a", was.Attributes["roleName"], "the request itself is left alone")

	_, err = was.Edited(map[string]string{"objects": strings.Repeat("x", maxAttributesBytes)})
	require.ErrorContains(t, err, "more than 256 KiB")
	many := map[string]string{}
	for i := range maxAttributes + 1 {
		many[fmt.Sprint(i)] = ""
	}
	_, err = was.Edited(many)
	require.ErrorContains(t, err, "more than 256 parameters")
}

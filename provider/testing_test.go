package provider

import (
	"encoding/base64"
	"encoding/json"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"sigs.k8s.io/secrets-store-csi-driver/provider/v1alpha1"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	kubelet = "/var/lib/kubelet"
	uid     = "6b1a2c1e-0d5f-4f0e-9f6e-0f8a3c0d9e11"
	target  = kubelet + "/pods/" + uid + "/volumes/kubernetes.io~csi/secrets/mount"
	objects = "- objectName: a\n  secretPath: secret/data/a\n  secretKey: k\n"
)

var testPod = Pod{Name: "web-0", Namespace: "shop", UID: uid, ServiceAccount: "web"}

// attributes are what the driver sends for a small SPC, changed by more; a value
// of "-" takes the key away.
func attributes(more map[string]string) map[string]string {
	a := map[string]string{
		podNameKey: testPod.Name, podNamespaceKey: testPod.Namespace, podUIDKey: uid, serviceAccountKey: testPod.ServiceAccount,
		"csi.storage.k8s.io/ephemeral": "true", spcKey: "shop-secrets", "roleName": "web", "objects": objects,
	}
	maps.Copy(a, more)
	maps.DeleteFunc(a, func(_, v string) bool { return v == "-" })
	return a
}

func mountRequest(t testing.TB, a map[string]string) *v1alpha1.MountRequest {
	t.Helper()
	text, err := json.Marshal(a)
	require.NoError(t, err)
	return &v1alpha1.MountRequest{Attributes: string(text), Secrets: "null", TargetPath: target, Permission: "420"}
}

func request(provider string, more map[string]string) Request {
	return Request{Provider: provider, Pod: testPod, Mode: 0o644, Attributes: attributes(more)}
}

// jwt is an unsigned token: nothing here verifies signatures.
func jwt(claims string) string {
	part := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	return part(`{"alg":"RS256"}`) + "." + part(claims) + "." + part("signature")
}

// maxInput is how long a refused SPC may be to be kept in a golden file.
const maxInput = 4 << 10

// input is a row of a golden file that holds what was refused, for tests that send it
// to a daemon; none where it is long.
func input(t *testing.T, name string, more map[string]string) []string {
	t.Helper()
	text, err := json.Marshal(more)
	require.NoError(t, err)
	if len(text) > maxInput {
		return nil
	}
	return []string{name + ": " + string(text)}
}

// golden compares rows of "name: text" with testdata/<file>, or writes it.
func golden(t *testing.T, file string, rows []string) {
	t.Helper()
	path := filepath.Join("testdata", file)
	got := strings.Join(rows, "\n") + "\n"
	if *update {
		require.NoError(t, os.MkdirAll("testdata", 0o755))
		require.NoError(t, os.WriteFile(path, []byte(got), 0o644))
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, string(want), got)
}

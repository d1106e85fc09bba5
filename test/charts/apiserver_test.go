package charts

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	core "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/tenure-csi/tenure/test/fixture"
)

// apiServer is a real kube-apiserver with an etcd of its own, and nothing else:
// objects are checked and kept, and no pod ever runs.
type apiServer struct{ Server }

// logShown is how much of a part's log a failed test shows.
const logShown = 4 << 10

// startAPIServer needs bin/kube and etcd, which other tests may go without.
func startAPIServer(t *testing.T) apiServer {
	t.Helper()
	kube, err := filepath.Abs(repository + "/bin/kube")
	require.NoError(t, err)
	etcd, lookErr := exec.LookPath("etcd")
	if _, err := os.Stat(kube); err != nil || lookErr != nil {
		t.Skip("SKIPPED: bin/kube or etcd is not there, so the chart meets no real API server: make node")
	}
	dir := t.TempDir()
	etcdURL, peerURL, port := "http://"+freeAddr(t), "http://"+freeAddr(t), freeAddr(t)
	start(t, exec.Command(etcd, "--data-dir="+dir+"/etcd", "--log-level=error", "--listen-client-urls="+etcdURL, "--advertise-client-urls="+etcdURL,
		"--listen-peer-urls="+peerURL, "--initial-advertise-peer-urls="+peerURL, "--initial-cluster=default="+peerURL))

	token := rand.Text()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	der, err := x509.MarshalECPrivateKey(key)
	require.NoError(t, err)
	signing := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
	for name, content := range map[string]string{"sa.key": string(signing), "tokens.csv": token + ",admin,1,system:masters\n"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600))
	}
	_, number, err := net.SplitHostPort(port)
	require.NoError(t, err)
	start(t, exec.Command(kube, "kube-apiserver", "--etcd-servers="+etcdURL, "--bind-address=127.0.0.1", "--secure-port="+number, "--cert-dir="+dir+"/certs",
		"--service-cluster-ip-range=10.96.0.0/24", "--authorization-mode=RBAC", "--allow-privileged=true", "--token-auth-file="+dir+"/tokens.csv",
		"--service-account-issuer=https://kubernetes", "--service-account-key-file="+dir+"/sa.key", "--service-account-signing-key-file="+dir+"/sa.key",
		"--disable-admission-plugins=ServiceAccount")) // no controller makes service accounts here
	awaitReady(t, "https://"+port+"/readyz", token, dir+"/certs/apiserver.crt")
	s := apiServer{Server{Kube: kube, Kubeconfig: filepath.Join(dir, "kubeconfig")}}
	require.NoError(t, os.WriteFile(s.Kubeconfig, fmt.Appendf(nil, `{apiVersion: v1, kind: Config, current-context: c,
contexts: [{name: c, context: {cluster: c, user: u}}], users: [{name: u, user: {token: %s}}],
clusters: [{name: c, cluster: {server: "https://%s", certificate-authority: %s}}]}`, token, port, dir+"/certs/apiserver.crt"), 0o600))
	return s
}

func freeAddr(t *testing.T) string {
	t.Helper()
	addr, err := fixture.FreeAddr()
	require.NoError(t, err)
	return addr
}

// start runs a program until the test ends.
func start(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		require.NoError(t, cmd.Process.Signal(syscall.SIGTERM), "it had ended before")
		_ = cmd.Wait() // by the signal
		if t.Failed() {
			t.Log(string(output.Bytes()[max(0, output.Len()-logShown):]))
		}
	})
}

func awaitReady(t *testing.T, url, token, ca string) {
	t.Helper()
	require.Eventually(t, func() bool {
		text, err := os.ReadFile(ca) // the server makes it
		block, _ := pem.Decode(text)
		if err != nil || block == nil {
			return false
		}
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(text)
		client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, DisableKeepAlives: true}}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
		if err != nil {
			return false
		}
		req.Header.Set("Authorization", "Bearer "+token)
		resp, err := client.Do(req)
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	}, 5*time.Minute, 100*time.Millisecond)
}

func (s apiServer) helm(t *testing.T, values string, args ...string) {
	t.Helper()
	_, err := helm(t, values, append(args, "--namespace", "kube-system", "--kubeconfig", s.Kubeconfig)...)
	require.NoError(t, err)
}

// TestRealAPIServer takes the chart, the manifests and the examples to a real
// kube-apiserver, which validates and keeps them.
func TestRealAPIServer(t *testing.T) {
	s := startAPIServer(t)
	t.Run("install, upgrade, uninstall", s.life)
	t.Run("plain manifests", func(t *testing.T) {
		s.Apply(t, repository+"/manifests/tenure.yaml", "")
		s.MustKubectl(t, "delete", "--filename", repository+"/manifests/tenure.yaml")
	})
	t.Run("with the driver", func(t *testing.T) {
		// Its hooks are Jobs, which nobody runs here.
		s.helm(t, WithDriver, "install", "tenure", chart, needed, "--no-hooks")
		require.Equal(t, "vault true", s.MustKubectl(t, "get", "csidriver", "secrets-store.csi.k8s.io", "--output",
			"jsonpath={.spec.tokenRequests[*].audience} {.spec.requiresRepublish}"), "as the notes say")
	})
	t.Run("examples", s.examples)
}

func (s apiServer) life(t *testing.T) {
	const vault = "vault: {addrs: ['https://vault:8200']}\n"
	s.helm(t, vault, "install", "tenure", chart, needed)
	key := s.versionKey(t)
	s.helm(t, Everything, "upgrade", "tenure", chart, needed)
	require.Equal(t, key, s.versionKey(t), "an upgrade keeps the key")
	const account = "--as=system:serviceaccount:kube-system:tenure"
	s.MustKubectl(t, "auth", "can-i", "create", "events", account)
	out, err := s.Kubectl(t, "", "auth", "can-i", "get", "secrets", account)
	require.Error(t, err)
	require.Equal(t, "no\n", out)
	s.helm(t, vault, "upgrade", "tenure", chart, needed)
	_, err = s.Kubectl(t, "", "auth", "can-i", "create", "events", account)
	require.Error(t, err, "what is switched off is taken away")

	_, err = helm(t, "", "uninstall", "tenure", "--namespace", "kube-system", "--kubeconfig", s.Kubeconfig)
	require.NoError(t, err)
	require.Equal(t, "No resources found in kube-system namespace.\n", s.MustKubectl(t, "get", "--namespace", "kube-system",
		"daemonsets,secrets,serviceaccounts,networkpolicies"))
}

func (s apiServer) versionKey(t *testing.T) string {
	t.Helper()
	var secret core.Secret
	out := s.MustKubectl(t, "get", "secret", "tenure-version-key", "--namespace", "kube-system", "--output", "yaml")
	require.NoError(t, yaml.Unmarshal([]byte(out), &secret))
	require.Len(t, secret.Data["key"], 40)
	return string(secret.Data["key"])
}

// examples applies them all, with the driver's CRDs; the admission policy last,
// which then lets its own kind of mistakes through no more.
func (s apiServer) examples(t *testing.T) {
	s.ApplyExamples(t, repository)
	const spc = "{apiVersion: secrets-store.csi.x-k8s.io/v1, kind: SecretProviderClass, metadata: {name: evil, namespace: shop}, spec: {provider: tenure, parameters: {vaultAddress: 'https://evil'}}}"
	const pod = "{apiVersion: v1, kind: Pod, metadata: {name: evil, namespace: shop}, spec: {containers: [{name: a, image: b}], volumes: [{name: s, csi: {driver: secrets-store.csi.k8s.io, volumeAttributes: {vaultAddress: 'https://evil'}}}]}}"
	for _, object := range []string{spc, pod} {
		// The server takes a new policy up within moments, not at once.
		require.Eventually(t, func() bool {
			out, err := s.Kubectl(t, object, "apply", "--dry-run=server", "--filename", "-")
			return err != nil && strings.Contains(out, "vaultAddress: only https://vault.example.com:8200 may be named; use one of these, or leave it out")
		}, 3*time.Minute, 100*time.Millisecond)
		out, err := s.Kubectl(t, strings.ReplaceAll(object, "https://evil", "https://vault.example.com:8200"), "apply", "--dry-run=server", "--filename", "-")
		require.NoError(t, err, out)
	}
}

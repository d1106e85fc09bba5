package kubeapi

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/tenure-csi/tenure/test/fixture"
)

// server is etcd and kube-apiserver, with RBAC and without any controller.
type server struct {
	URL       string
	PublicKey string // of the service account tokens, in PEM

	dir   string
	parts []*exec.Cmd
	logs  []*bytes.Buffer // of the parts
}

// issuer is the iss claim of the tokens that kube-apiserver signs, and their
// audience where nobody names one: the same as of the fixture's.
const issuer = "https://kubernetes.default.svc.cluster.local"

// users are who may call, by their tokens: the administrator, and one for each
// permission of the docs, who has that one alone; all has all.
var users = []string{"admin", "events", "pods", "spcs", "status", "token-requests", "all", "nobody"}

// startServer starts both. The kube binary holds kube-apiserver.
func startServer(ctx context.Context, kube string) (s *server, err error) {
	s = &server{}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.stop())
			for _, log := range s.logs {
				err = fmt.Errorf("%w\n%s", err, log)
			}
		}
	}()
	if s.dir, err = os.MkdirTemp("", "tenure-kubeapi-"); err != nil {
		return s, err
	}
	if err = s.writeKeys(); err != nil {
		return s, err
	}
	client, clientErr := fixture.FreeAddr()
	peer, peerErr := fixture.FreeAddr()
	addr, addrErr := fixture.FreeAddr()
	if err = errors.Join(clientErr, peerErr, addrErr); err != nil {
		return s, err
	}
	etcd := "http://" + client
	if err = s.run("etcd", "--data-dir="+s.dir+"/etcd", "--listen-client-urls="+etcd, "--advertise-client-urls="+etcd,
		"--listen-peer-urls=http://"+peer, "--log-level=error"); err != nil {
		return s, err
	}
	s.URL = "https://" + addr
	_, secure, _ := net.SplitHostPort(addr)
	if err = s.run(kube, "kube-apiserver",
		"--etcd-servers="+etcd, "--secure-port="+secure, "--bind-address=127.0.0.1",
		"--advertise-address=192.0.2.1", "--endpoint-reconciler-type=none", // nobody looks for it
		"--service-cluster-ip-range=10.96.0.0/24", "--cert-dir="+s.dir,
		"--authorization-mode=RBAC", "--token-auth-file="+s.dir+"/tokens.csv",
		"--disable-admission-plugins=ServiceAccount", // no controller makes the default ones
		"--service-account-issuer="+issuer, "--service-account-key-file="+s.dir+"/key.pem",
		"--service-account-signing-key-file="+s.dir+"/key.pem", "--v=0",
	); err != nil {
		return s, err
	}
	return s, s.awaitReady(ctx)
}

func (s *server) writeKeys() error {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return err
	}
	s.PublicKey = string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}))
	text := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
	var tokens strings.Builder
	for _, u := range users {
		group := ""
		if u == "admin" {
			group = "system:masters"
		}
		fmt.Fprintf(&tokens, "token-of-%s,%s,%s,%q\n", u, u, u, group)
	}
	return errors.Join(os.WriteFile(s.dir+"/key.pem", text, 0o600), os.WriteFile(s.dir+"/tokens.csv", []byte(tokens.String()), 0o600))
}

// run starts a program that ends with us.
func (s *server) run(name string, args ...string) error {
	cmd := exec.Command(name, args...) // stop ends it
	log := &bytes.Buffer{}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting %s: %w", name, err)
	}
	s.parts, s.logs = append(s.parts, cmd), append(s.logs, log)
	return nil
}

func (s *server) awaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	return fixture.Eventually(ctx, http.StatusOK, func(ctx context.Context) (int, error) {
		ca, err := os.ReadFile(s.dir + "/apiserver.crt")
		if err != nil {
			return 0, err
		}
		return readyz(ctx, s.URL, ca)
	})
}

// stop ends both and removes what they wrote.
func (s *server) stop() error {
	var errs []error
	for i := len(s.parts) - 1; i >= 0; i-- { // etcd last
		errs = append(errs, s.parts[i].Process.Kill()) // nothing of it is kept
		_ = s.parts[i].Wait()                          // it says that it was killed
	}
	return errors.Join(append(errs, os.RemoveAll(s.dir))...)
}

// kubeconfig writes the file by which a user calls.
func (s *server) kubeconfig(user string) (string, error) {
	path := filepath.Join(s.dir, user+".conf")
	text := fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: c,
clusters: [{name: c, cluster: {server: %q, certificate-authority: %q}}],
users: [{name: u, user: {token: token-of-%s}}],
contexts: [{name: c, context: {cluster: c, user: u}}]}`, s.URL, s.dir+"/apiserver.crt", user)
	return path, os.WriteFile(path, []byte(text), 0o600)
}

package vault

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/internal/lease"
	"github.com/tenure-csi/tenure/provider"
)

func TestAddresses(t *testing.T) {
	for _, row := range []struct {
		name    string
		cfg     Config
		ask     string
		want    string // normalised; empty: refused
		refusal string
	}{
		{"the operator's, unnamed", Config{Addr: "https://Vault.example.com:8200/"}, "", "https://vault.example.com:8200", ""},
		{"the operator's, named otherwise", Config{Addr: "https://vault.example.com"}, "https://VAULT.example.com.:443", "https://vault.example.com:443", ""},
		{"another than the operator's", Config{Addr: "https://vault:8200"}, "https://evil:8200", "", "only to https://vault:8200"},
		{"another port", Config{Addr: "https://vault:8200"}, "https://vault:8201", "", "only to"},
		{"another scheme", Config{Addr: "https://vault:8200"}, "http://vault:8200", "", "only to"},
		{"listed", Config{AllowedAddrs: []string{"https://a:1", "https://b:2"}}, "https://b:2", "https://b:2", ""},
		{"not listed", Config{AllowedAddrs: []string{"https://a:1", "https://b:2"}}, "https://c:3", "", "only to https://a:1, https://b:2; use one of these, or have the operator add it to --allowed-vault-addrs"},
		{"the operator's beside a list", Config{Addr: "https://v:1", AllowedAddrs: []string{"https://a:1"}}, "https://v:1", "https://v:1", ""},
		{"any", Config{}, "https://anything.example.com/prefix/", "https://anything.example.com:443/prefix", ""},
		{"none anywhere", Config{}, "", "", "set vaultAddress"},
		{"socket", Config{}, "unix:///run/x.sock", "", "scheme must be"},
		{"user", Config{}, "https://a@b", "", "only scheme"},
		{"query", Config{}, "https://b?x=1", "", "only scheme"},
		{"garbage", Config{}, "https://%zz", "", "malformed URL"},
		{"no host", Config{}, "https://:8200", "", "no host"},
		{"v6", Config{}, "https://[2001:DB8::1]:8200", "https://[2001:db8::1]:8200", ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := source(t, row.cfg)
			to, err := s.resolve(provider.Login{Method: "jwt", Address: row.ask})
			if row.want == "" {
				require.NotNil(t, err)
				require.Equal(t, "vaultAddress", err.Field)
				require.Contains(t, err.Error(), row.refusal)
				return
			}
			require.Nil(t, err)
			require.Equal(t, row.want, to.addr)
		})
	}
}

func TestConfig(t *testing.T) {
	var log bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&log, nil))
	_, err := New(Config{Logger: logger})
	require.NoError(t, err)
	require.Contains(t, log.String(), "level=WARN")
	require.Contains(t, log.String(), "--allowed-vault-addrs")
	for _, row := range []struct {
		name string
		cfg  Config
		says string
	}{
		{"address", Config{Addr: "vault:8200"}, `reading Vault address "vault:8200"`},
		{"listed address", Config{AllowedAddrs: []string{"ftp://x"}}, "scheme"},
		{"certificate without key", Config{Addr: "https://v", ClientCert: "c"}, "belong together"},
		{"certificate without address", Config{ClientCert: "c", ClientKey: "k"}, "none is set"},
	} {
		t.Run(row.name, func(t *testing.T) {
			_, err := New(row.cfg)
			require.ErrorContains(t, err, row.says)
		})
	}
}

func TestResolveMaterial(t *testing.T) {
	cfg := Config{
		Addr: "https://vault:8200", AllowedAddrs: []string{"https://other:8200"}, Mount: "k8s", Namespace: "ns",
		CACert: "/ca.pem", ClientCert: "/c.pem", ClientKey: "/k.pem", ServerName: "vault.internal", TLSDir: "/tls",
	}
	s := source(t, cfg)
	own, err := s.resolve(provider.Login{Method: "jwt"})
	require.Nil(t, err)
	require.Equal(t, target{
		endpoint: endpoint{
			addr: "https://vault:8200", ca: tlsPath{path: "/ca.pem"}, serverName: "vault.internal",
			cert: tlsPath{path: "/c.pem"}, key: tlsPath{path: "/k.pem"},
		},
		namespace: "ns", mount: "k8s",
	}, own)
	other, err := s.resolve(provider.Login{Method: "jwt", Mount: "jwt-x", Namespace: "n2", Address: "https://other:8200"})
	require.Nil(t, err)
	require.Equal(t, target{endpoint: endpoint{addr: "https://other:8200", ca: tlsPath{path: "/ca.pem"}}, namespace: "n2", mount: "jwt-x"}, other,
		"the daemon's certificate and server name stay with the operator's address")
	_, err = s.resolve(provider.Login{SkipTLSVerify: true, Method: "jwt"})
	require.Equal(t, "vaultSkipTLSVerify", err.Field)
	for _, bad := range []string{"../sys", "/a", "a/", "a//b", "a/../../b", "."} {
		_, err = s.resolve(provider.Login{Mount: bad})
		require.NotNil(t, err, bad)
		require.Equal(t, "vaultAuthMountPath", err.Field)
	}
}

func TestAnyAddressIsNeverTheNode(t *testing.T) {
	var hit atomic.Bool
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { hit.Store(true) }))
	defer srv.Close()
	_, port, _ := net.SplitHostPort(srv.Listener.Addr().String())
	s := source(t, Config{})
	for _, addr := range []string{srv.URL, "http://localhost:" + port, "http://0.0.0.0:" + port, "http://169.254.169.254", "http://[::ffff:127.0.0.1]:" + port, "http://[fe80::1]"} {
		se := opened()
		se.Login.Address = addr
		_, err := s.Read(t.Context(), mount, se, creds)
		f := failure(t, err)
		require.Equal(t, provider.Denied, f.Problem.Class, "%s: %v", addr, err)
		require.False(t, f.MayHaveMinted)
	}
	require.False(t, hit.Load())
}

// authority signs server and client certificates.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pem  []byte
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return &authority{key: key, cert: cert, pem: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

func (a *authority) issue(t *testing.T, until time.Time) (cert, key []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "leaf"}, NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: until,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &k.PublicKey, a.key)
	require.NoError(t, err)
	raw, err := x509.MarshalPKCS8PrivateKey(k)
	require.NoError(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})
}

func (a *authority) server(t *testing.T, until time.Time) *tls.Certificate {
	t.Helper()
	cert, key := a.issue(t, until)
	return pair(t, cert, key)
}

// tlsVault serves with the certificate that serve holds.
func tlsVault(t *testing.T, serve *atomic.Pointer[tls.Certificate], auth tls.ClientAuthType, clients *atomic.Int32) *httptest.Server {
	t.Helper()
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if clients != nil && len(r.TLS.PeerCertificates) > 0 {
			clients.Add(1)
		}
		answering(200, dbAnswer)(w, r)
	}))
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	srv.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		return &tls.Config{ClientAuth: auth, Certificates: []tls.Certificate{*serve.Load()}}, nil
	}}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return srv
}

func pair(t *testing.T, cert, key []byte) *tls.Certificate {
	t.Helper()
	p, err := tls.X509KeyPair(cert, key)
	require.NoError(t, err)
	return &p
}

func TestServerCertificates(t *testing.T) {
	ca := newAuthority(t)
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "ca.pem"), ca.pem, 0o600))
	var serve atomic.Pointer[tls.Certificate]
	srv := tlsVault(t, &serve, tls.NoClientCert, nil)
	for _, row := range []struct {
		name  string
		cfg   Config
		until time.Time
		login func(*provider.Login)
		field string
		says  string
	}{
		{"good", Config{CACert: filepath.Join(dir, "ca.pem")}, time.Now().Add(time.Hour), nil, "", ""},
		{"CA directory", Config{CAPath: dir}, time.Now().Add(time.Hour), nil, "", ""},
		{"expired", Config{CACert: filepath.Join(dir, "ca.pem")}, time.Now().Add(-time.Hour), nil, "", "valid from"},
		{"unknown authority", Config{}, time.Now().Add(time.Hour), nil, "vaultCACertPath", "unknown authority"},
		{"other name", Config{CACert: filepath.Join(dir, "ca.pem"), ServerName: "vault"}, time.Now().Add(time.Hour), nil, "vaultTLSServerName", "another host name"},
		{"CA of the SPC", Config{TLSDir: dir}, time.Now().Add(time.Hour), func(l *provider.Login) { l.CACertPath = "ca.pem" }, "", ""},
		{"CA of the SPC, whole path", Config{TLSDir: dir}, time.Now().Add(time.Hour), func(l *provider.Login) { l.CACertPath = dir + "/ca.pem" }, "", ""},
		{"CA directory of the SPC", Config{TLSDir: dir}, time.Now().Add(time.Hour), func(l *provider.Login) { l.CADirectory = "." }, "", ""},
		{"CA outside", Config{TLSDir: dir}, time.Now().Add(time.Hour), func(l *provider.Login) { l.CACertPath = "/etc/passwd" }, "vaultCACertPath", "not below --tls-dir"},
		{"CA outside by dots", Config{TLSDir: dir}, time.Now().Add(time.Hour), func(l *provider.Login) { l.CADirectory = "../" }, "vaultCADirectory", "not below --tls-dir"},
		{"no TLS directory", Config{}, time.Now().Add(time.Hour), func(l *provider.Login) { l.CACertPath = "ca.pem" }, "vaultCACertPath", "no --tls-dir"},
		{"verification off", Config{AllowSkipVerify: true}, time.Now().Add(-time.Hour), func(l *provider.Login) { l.SkipTLSVerify = true }, "", ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			serve.Store(ca.server(t, row.until))
			row.cfg.Addr = srv.URL
			s := source(t, row.cfg)
			se := opened()
			if row.login != nil {
				row.login(&se.Login)
			}
			_, err := s.Read(t.Context(), mount, se, creds)
			if row.says == "" {
				require.NoError(t, err)
				return
			}
			f := failure(t, err)
			require.Contains(t, f.Error(), row.says)
			require.Equal(t, row.field, f.Problem.Field)
			require.Equal(t, provider.Precondition, f.Problem.Class, "whoever waits is told at once")
			require.Equal(t, lease.Retry, f.Verdict, "what lives is kept, and tried again")
			require.NotEmpty(t, f.Problem.Remedy)
			require.False(t, f.MayHaveMinted)
		})
	}
}

func TestSymlinkOutOfTLSDir(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.Symlink("/etc/passwd", filepath.Join(dir, "ca.pem")))
	s := source(t, Config{Addr: "https://127.0.0.1:1", TLSDir: dir})
	se := opened()
	se.Login.CACertPath = "ca.pem"
	_, err := s.Read(t.Context(), mount, se, creds)
	require.Contains(t, failure(t, err).Error(), "escapes")
}

func TestClientCertificateGoesToTheOperatorOnly(t *testing.T) {
	ca, dir := newAuthority(t), t.TempDir()
	cert, key := ca.issue(t, time.Now().Add(time.Hour))
	for name, data := range map[string][]byte{"ca.pem": ca.pem, "c.pem": cert, "k.pem": key} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), data, 0o600))
	}
	var serve atomic.Pointer[tls.Certificate]
	serve.Store(pair(t, cert, key))
	var own, other atomic.Int32
	ours, theirs := tlsVault(t, &serve, tls.RequestClientCert, &own), tlsVault(t, &serve, tls.RequestClientCert, &other)
	s := source(t, Config{
		Addr: ours.URL, AllowedAddrs: []string{theirs.URL}, TLSDir: dir,
		CACert: dir + "/ca.pem", ClientCert: dir + "/c.pem", ClientKey: dir + "/k.pem",
	})
	se := opened()
	_, err := s.Read(t.Context(), mount, se, creds)
	require.NoError(t, err)
	require.EqualValues(t, 1, own.Load())
	se.Login.Address = theirs.URL
	_, err = s.Read(t.Context(), mount, se, creds)
	require.NoError(t, err)
	require.Zero(t, other.Load())
	se.Login.ClientCertPath, se.Login.ClientKeyPath = "c.pem", "k.pem"
	_, err = s.Read(t.Context(), mount, se, creds)
	require.NoError(t, err)
	require.EqualValues(t, 1, other.Load(), "an SPC's own certificate goes where the SPC says")
	se.Login.ClientKeyPath = "ca.pem"
	_, err = s.Read(t.Context(), mount, se, creds)
	require.Equal(t, "vaultTLSClientCertPath", failure(t, err).Problem.Field)
}

func TestClientsAreBounded(t *testing.T) {
	var all clients
	log := slog.New(slog.DiscardHandler)
	for i := range 2 * maxClients {
		_, err := all.get(endpoint{addr: fmt.Sprintf("http://v%d", i)}, "", log)
		require.NoError(t, err)
		_, err = all.get(endpoint{addr: "http://v0"}, "", log)
		require.NoError(t, err)
	}
	require.Len(t, all.by, maxClients)
	require.Contains(t, all.by, endpoint{addr: "http://v0"}, "the one in use stays")
	all.close()
	require.Empty(t, all.by)
}

func TestPlainServerBehindHTTPS(t *testing.T) {
	srv := httptest.NewServer(answering(200, "{}"))
	defer srv.Close()
	s := source(t, Config{Addr: "https" + srv.URL[len("http"):]})
	_, err := s.Read(t.Context(), mount, opened(), creds)
	f := failure(t, err)
	require.Equal(t, lease.Retry, f.Verdict)
	require.Equal(t, provider.Precondition, f.Problem.Class)
	require.Contains(t, f.Error(), "does not speak TLS")
}

func TestTLSServerBehindHTTP(t *testing.T) {
	srv := httptest.NewUnstartedServer(nil)
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	srv.StartTLS()
	defer srv.Close()
	s := source(t, Config{Addr: "http" + srv.URL[len("https"):]})
	_, err := s.Login(t.Context(), mount, login(), identity())
	f := failure(t, err)
	require.Equal(t, provider.Precondition, f.Problem.Class)
	require.Equal(t, "vaultAddress", f.Problem.Field)
	require.Contains(t, f.Error(), "the server there speaks TLS; begin the address with https://")
}

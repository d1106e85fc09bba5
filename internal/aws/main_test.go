package aws

import (
	"encoding/base64"
	"encoding/json"
	"encoding/xml"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/tenure-csi/tenure/internal/lease"
	"github.com/tenure-csi/tenure/provider"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const role = "arn:aws:iam::123456789012:role/orders"

var (
	pod   = provider.Pod{Name: "web-0", Namespace: "shop", UID: "u", ServiceAccount: "web"}
	mount = lease.Caller{Pod: pod}
	token = jwt("system:serviceaccount:shop:web")
)

// jwt is an unsigned token: nothing here verifies signatures.
func jwt(subject string) string {
	part := func(v any) string {
		text, _ := json.Marshal(v)
		return base64.RawURLEncoding.EncodeToString(text)
	}
	return part(map[string]string{"alg": "RS256"}) + "." + part(map[string]any{"sub": subject, "exp": time.Now().Add(time.Hour).Unix()}) + ".c2ln"
}

func identity() provider.Identity {
	return provider.Identity{Tokens: map[string]provider.Token{
		"sts.amazonaws.com": {Value: provider.Secret(token)}, "pods.eks.amazonaws.com": {Value: provider.Secret(token)},
	}}
}

// cloud plays STS and the agent of EKS Pod Identity. It is a fake for what a real
// STS can't be made to answer; the tests in test/aws ask a real one.
type cloud struct {
	*httptest.Server
	mu     sync.Mutex
	seen   []*http.Request
	forms  []url.Values
	answer http.HandlerFunc // instead of a session; nil: a session
	life   time.Duration
	keyID  string
	token  string // of a session
}

func newCloud(t *testing.T) *cloud {
	t.Helper()
	c := &cloud{life: time.Hour, keyID: "ASIASESSION", token: "session-token"}
	c.Server = httptest.NewServer(c)
	t.Cleanup(c.Close)
	return c
}

func (c *cloud) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_ = r.ParseForm()
	c.mu.Lock()
	c.seen, c.forms = append(c.seen, r), append(c.forms, r.PostForm)
	answer := c.answer
	c.mu.Unlock()
	if answer != nil {
		answer(w, r)
		return
	}
	c.grant(w, r)
}

// grant answers a session.
func (c *cloud) grant(w http.ResponseWriter, r *http.Request) {
	end := time.Now().Add(c.life).UTC().Format(time.RFC3339)
	if r.URL.Path == "/agent" {
		_ = json.NewEncoder(w).Encode(map[string]string{
			"AccessKeyId": "ASIAAGENT", "SecretAccessKey": "agent-secret", "Token": "agent-token", "Expiration": end, "AccountId": "123456789012",
		})
		return
	}
	type credentials struct {
		ID                                        string `xml:"AccessKeyId"`
		SecretAccessKey, SessionToken, Expiration string
	}
	type result struct {
		Credentials             credentials
		SessionTokenUtilization int
	}
	action := r.PostForm.Get("Action")
	w.Header().Set("Content-Type", "text/xml")
	encoder := xml.NewEncoder(w)
	start := func(name string) xml.StartElement { return xml.StartElement{Name: xml.Name{Local: name}} }
	_ = encoder.EncodeToken(start(action + "Response"))
	_ = encoder.EncodeElement(result{credentials{c.keyID, "session-secret", c.token, end}, 95}, start(action+"Result"))
	_ = encoder.EncodeToken(start(action + "Response").End())
	_ = encoder.Flush()
}

// refuse answers an error as STS does.
func (c *cloud) refuse(status int, code, message string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answer = func(w http.ResponseWriter, _ *http.Request) {
		var text strings.Builder
		_ = xml.EscapeText(&text, []byte(message))
		w.Header().Set("Content-Type", "text/xml")
		w.WriteHeader(status)
		_, _ = w.Write([]byte("<ErrorResponse><Error><Type>Sender</Type><Code>" + code + "</Code><Message>" + text.String() + "</Message></Error></ErrorResponse>"))
	}
}

// source asks the cloud.
func (c *cloud) source(t *testing.T, change func(*Config)) *Source {
	t.Helper()
	cfg := Config{Region: "eu-central-1", STSEndpoint: c.URL, Agent: c.URL + "/agent", Cluster: "prod"}
	if change != nil {
		change(&cfg)
	}
	s, err := New(cfg)
	require.NoError(t, err)
	t.Cleanup(s.Close)
	return s
}

// read logs in and reads, as the worker does.
func read(t *testing.T, s *Source, r provider.Read) (lease.Issued, *lease.Failure) {
	t.Helper()
	se, err := s.Login(t.Context(), mount, r.Login, identity())
	var issued lease.Issued
	if err == nil {
		require.Empty(t, se.Token)
		se.Identity = identity()
		issued, err = s.Read(t.Context(), mount, se, r)
	}
	if err == nil {
		return issued, nil
	}
	var f *lease.Failure
	require.ErrorAs(t, err, &f)
	return issued, f
}

func asPod(change func(*provider.AWS)) provider.Read {
	return asking(provider.PodIdentity, "sts.amazonaws.com", change)
}

func asAgent(change func(*provider.AWS)) provider.Read {
	return asking(provider.AgentIdentity, "pods.eks.amazonaws.com", change)
}

func asking(identity, audience string, change func(*provider.AWS)) provider.Read {
	r := provider.Read{Source: "aws-sts", Login: provider.Login{Audience: audience}, AWS: provider.AWS{Identity: identity, RoleARN: role}}
	if change != nil {
		change(&r.AWS)
	}
	return r
}

func lent(c *Config) {
	c.Node = aws.CredentialsProviderFunc(credentialsOfNode)
}

// refusedURL answers the URL of a port that refuses connections until the test ends:
// it is taken, so that no other server can get it, and nobody listens.
func refusedURL(t *testing.T) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	t.Cleanup(func() { _ = unix.Close(fd) })
	require.NoError(t, unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	at, err := unix.Getsockname(fd)
	require.NoError(t, err)
	return fmt.Sprint("http://127.0.0.1:", at.(*unix.SockaddrInet4).Port)
}

// golden compares rows with testdata/<file>, or writes it.
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

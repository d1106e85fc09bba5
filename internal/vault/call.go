package vault

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/tenure-csi/tenure/internal/lease"
	"github.com/tenure-csi/tenure/provider"
)

// operation is what a call does, for metrics, logs and error texts.
type operation string

const (
	opLogin      operation = "login"
	opLookup     operation = "lookup_token"
	opRead       operation = "read"
	opRenewToken operation = "renew_token"
	opRenewLease operation = "renew_lease"
	opEndToken   operation = "end_token"
	opEndLease   operation = "end_lease"
)

// call is one request to Vault.
type call struct {
	op       operation
	by       lease.Caller
	login    provider.Login
	to       target          // of login
	token    provider.Secret // empty at login
	borrowed bool            // the token is somebody's own, and no role's
	accessor string          // of the token, for the log
	method   string
	path     string // without leading "/" and "v1/"
	query    url.Values
	body     map[string]any    // nil: none
	mints    bool              // a read that may mint: once it has room to be sent, ctx does not stop it
	proof    []provider.Secret // of a login; kept out of error texts
}

// answer is what came of a request.
type answer struct {
	response
	status      int // 0: no answer
	location    string
	contentType string
	retryAfter  time.Duration
	sent        bool  // some of the request may have reached Vault
	err         error // no answer, a cut one, or one that is no JSON of Vault's
}

// response is Vault's JSON, with the fields of auth that api.SecretAuth lacks.
type response struct {
	api.Secret
	Auth   *auth    `json:"auth"`
	Errors []string `json:"errors"`
}

type auth struct {
	ClientToken   string          `json:"client_token"`
	Accessor      string          `json:"accessor"`
	LeaseDuration int             `json:"lease_duration"`
	Renewable     bool            `json:"renewable"`
	TokenType     string          `json:"token_type"`
	NumUses       int             `json:"num_uses"`
	MFA           json.RawMessage `json:"mfa_requirement"`
}

// errTooLarge and errEmpty are answers that can't be used.
var (
	errTooLarge = fmt.Errorf("answer of more than %d MiB", maxBody>>20)
	errEmpty    = errors.New("empty answer")
)

// do sends a call once it has room, and to the operator's next address where
// one can have had no effect. The answer's status is 2xx unless a Failure is
// returned.
func (s *Source) do(ctx context.Context, c call) (answer, *lease.Failure) {
	leave, err := s.gates.Enter(ctx, s.cluster(c), c.by.Pod.Namespace, c.by.Work, c.op == opLogin)
	if err != nil {
		return answer{}, crowded(c, err)
	}
	defer leave()
	switch {
	case c.mints:
		ctx = context.WithoutCancel(ctx)
	case c.op == opLogin:
		var cancel context.CancelFunc
		ctx, cancel = withoutDeadline(ctx)
		defer cancel()
	}
	a, tried := s.try(ctx, &c)
	if a.ok() {
		return a, nil
	}
	f := classify(c, a)
	if a.unclear() && c.token != "" && s.dead(ctx, c) {
		f = buried(c)
	}
	f.Problem.Cause = tried.explain(f.Problem.Cause)
	return a, f
}

// withoutDeadline returns a context that ends when ctx is cancelled, and goes on when
// its deadline passes.
func withoutDeadline(ctx context.Context) (context.Context, context.CancelFunc) {
	on, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
			cancel()
		}
	})
	return on, func() { stop(); cancel() }
}

// ask sends a call to an address, and once more where the first can have had no
// effect: when a node answers that it lags behind the active one, when a standby
// redirects, when a kept connection turned out to be closed. It answers who was
// asked last, too.
func (s *Source) ask(ctx context.Context, c call, at target) (answer, target) {
	limit := callTimeout
	if c.mints {
		limit = mintTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	c.to = at
	a := s.send(ctx, c, nil)
	if c.op == opRead && a.lagging() {
		again := s.send(ctx, c, http.Header{
			api.HeaderForward:      {"active-node"},
			api.HeaderInconsistent: {"forward-active-node"},
		})
		if again.status < 400 || again.status >= 500 {
			a = again // else the first refusal is the one to tell
		}
	}
	if a.status == http.StatusTemporaryRedirect || a.status == http.StatusPermanentRedirect {
		if next, err := s.redirected(c.to, c.login, a.location); err != nil {
			a.err = &redirectError{err}
		} else {
			c.to = next
			a = s.send(ctx, c, nil)
		}
	}
	return a, c.to
}

func (a answer) ok() bool { return a.err == nil && a.status >= 200 && a.status < 300 }

// lagging reports whether another node may know better: 412, or a token that
// this one does not know, which after a login on a standby may be news to it.
// Vault refuses both before any secrets engine sees the request.
func (a answer) lagging() bool {
	return a.status == http.StatusPreconditionFailed || a.status == http.StatusForbidden && a.says("invalid token")
}

// says reports whether Vault's errors hold a text; its texts are no API, so
// case and surroundings do not count.
func (a answer) says(text string) bool {
	return strings.Contains(strings.ToLower(strings.Join(a.Errors, "\n")), text)
}

// unclear reports whether a refusal of Vault's does not tell if the token is dead,
// as its known texts do. One without Vault's errors is somebody else's on the way.
func (a answer) unclear() bool {
	return a.err == nil && a.status == http.StatusForbidden && len(a.Errors) > 0 && !a.says("permission denied") && !a.says("invalid token")
}

// dead asks Vault about a call's token. One that may not look itself up, because it
// lacks the default policy, is refused in the known words and counts as alive.
func (s *Source) dead(ctx context.Context, c call) bool {
	look := call{
		op: opLookup, by: c.by, login: c.login, to: c.to, token: c.token, accessor: c.accessor,
		method: http.MethodGet, path: "auth/token/lookup-self",
	}
	a, _ := s.try(ctx, &look)
	return a.unclear() || a.says("invalid token")
}

// send makes one request, and one more if the connection was found closed
// before anything was written.
func (s *Source) send(ctx context.Context, c call, extra http.Header) answer {
	client, err := s.clients.get(c.to.endpoint, s.cfg.TLSDir, s.log)
	if err != nil {
		return answer{err: err}
	}
	s.metrics.inFlight.Inc()
	defer s.metrics.inFlight.Dec()
	start := time.Now()
	a, reused := attempt(ctx, client, c, extra)
	if a.err != nil && !a.sent && reused {
		a, _ = attempt(ctx, client, c, extra)
	}
	took := time.Since(start)
	s.metrics.done(c.op, a.status, took)
	s.log.LogAttrs(ctx, slog.LevelDebug, "asked Vault",
		slog.String("op", string(c.op)), slog.String("address", c.to.addr), slog.String("path", bounded(c.path)),
		slog.String("namespace", c.by.Pod.Namespace), slog.String("pod", c.by.Pod.Name),
		slog.Int("status", a.status), slog.Duration("took", took),
		slog.String("requestId", bounded(a.RequestID)), slog.String("accessor", bounded(c.accessor)))
	return a
}

func attempt(ctx context.Context, client *http.Client, c call, extra http.Header) (a answer, reused bool) {
	// The transport's goroutines may call these after Do has returned.
	var wrote, kept atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn:      func(info httptrace.GotConnInfo) { kept.Store(info.Reused) },
		WroteHeaders: func() { wrote.Store(true) },
	})
	req, err := request(ctx, c, extra)
	if err != nil {
		return answer{err: err}, false
	}
	resp, err := client.Do(req)
	if err != nil {
		return answer{err: err, sent: wrote.Load()}, kept.Load()
	}
	defer resp.Body.Close()
	a = answer{
		status: resp.StatusCode, sent: true,
		location:    resp.Header.Get("Location"),
		retryAfter:  retryAfter(resp.Header.Get("Retry-After"), time.Now()),
		contentType: resp.Header.Get("Content-Type"),
	}
	a.response, a.err = decode(resp.Body)
	if a.status >= 300 || errors.Is(a.err, errEmpty) && a.status != http.StatusOK {
		a.err = nil // an error's status says enough without a body
	}
	return a, kept.Load()
}

func request(ctx context.Context, c call, extra http.Header) (*http.Request, error) {
	u, err := url.Parse(c.to.addr)
	if err != nil {
		return nil, err
	}
	u.Path += "/v1/" + c.path
	u.RawQuery = c.query.Encode()
	var body io.Reader
	if c.body != nil {
		raw, badArgs := json.Marshal(c.body)
		if badArgs != nil {
			return nil, &argsError{badArgs}
		}
		body = bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(ctx, c.method, u.String(), body)
	if err != nil {
		return nil, err
	}
	if c.method == http.MethodGet {
		// net/http sends a GET again by itself when a kept connection breaks before
		// the answer, and a dynamic credential would be minted twice. A body that
		// it can't rewind, empty though it is, stops that.
		req.Body = io.NopCloser(strings.NewReader(""))
	}
	for key, values := range extra {
		req.Header[http.CanonicalHeaderKey(key)] = values
	}
	req.Header.Set(api.RequestHeaderName, "true")
	req.Header.Set("User-Agent", "tenure")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.to.namespace != "" {
		req.Header.Set(api.NamespaceHeaderName, c.to.namespace)
	}
	if c.token != "" {
		req.Header.Set(api.AuthHeaderName, c.token.Reveal())
	}
	return req, nil
}

// redirectError is a redirect that is not followed.
type redirectError struct{ err error }

func (e *redirectError) Error() string { return e.err.Error() }

// argsError is secretArgs that JSON can't express.
type argsError struct{ err error }

func (e *argsError) Error() string { return e.err.Error() }

// decode reads an answer of at most maxBody bytes. Numbers stay as they were written.
func decode(r io.Reader) (response, error) {
	raw, err := io.ReadAll(io.LimitReader(r, maxBody+1))
	if err != nil {
		return response{}, err
	}
	if len(raw) > maxBody {
		return response{}, errTooLarge
	}
	if len(bytes.TrimSpace(raw)) == 0 {
		return response{}, errEmpty
	}
	var out response
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if err := d.Decode(&out); err != nil {
		return response{}, &jsonError{err}
	}
	return out, nil
}

// jsonError is an answer that is not Vault's JSON. Its text may quote the
// answer and is not shown.
type jsonError struct{ err error }

func (e *jsonError) Error() string { return "answer is not the JSON of Vault" }
func (e *jsonError) Unwrap() error { return e.err }

// maxRetryAfter bounds what a backend may ask for.
const maxRetryAfter = 15 * time.Minute

// retryAfter reads the header's seconds or date; 0 without one.
func retryAfter(header string, now time.Time) time.Duration {
	var d time.Duration
	if seconds, err := strconv.Atoi(header); err == nil {
		d = time.Duration(min(seconds, int(maxRetryAfter/time.Second))) * time.Second
	} else if at, err := http.ParseTime(header); err == nil {
		d = at.Sub(now)
	}
	return min(max(d, 0), maxRetryAfter)
}

// mediaType is the bare type of a Content-Type, for an error text.
func mediaType(contentType string) string {
	t, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		return "no content type"
	}
	return t
}

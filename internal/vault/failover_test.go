package vault

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/internal/lease"
	"github.com/tenure-csi/tenure/provider"
)

// vaultAt is one address of a cluster; what it counts it was asked.
type vaultAt struct {
	*httptest.Server
	asked atomic.Int32
}

func newVaultAt(t *testing.T, h http.HandlerFunc) *vaultAt {
	t.Helper()
	v := &vaultAt{}
	v.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v.asked.Add(1)
		h(w, r)
	}))
	t.Cleanup(v.Close)
	return v
}

func TestOtherAddressWhereNothingWasDone(t *testing.T) {
	says := func(text string) string { return `{"errors":["` + text + `"]}` }
	redirect := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", "http://127.0.0.2:1/v1/x")
		w.WriteHeader(http.StatusTemporaryRedirect)
	}
	for _, row := range []struct {
		name    string
		first   http.HandlerFunc // nil: nobody listens
		reads   [2]int32         // by two reads, at each address
		refused bool             // the first read fails
	}{
		{"refused connection", nil, [2]int32{0, 2}, false},
		{"sealed", answering(503, says("Vault is sealed")), [2]int32{1, 2}, false},
		{"performance standby", answering(473, ""), [2]int32{1, 2}, false},
		{"standby without an active node", answering(474, ""), [2]int32{1, 2}, false},
		{"no active node", answering(500, says("local node not active but active cluster node not found")), [2]int32{1, 2}, false},
		{"redirect to an address that is not allowed", redirect, [2]int32{1, 2}, false},

		{"cut after the request", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, [2]int32{1, 1}, true},
		{"fault of the database", answering(500, says("failed to connect to")), [2]int32{2, 0}, true},
		{"gateway", answering(502, "<html>"), [2]int32{2, 0}, true},
		{"503 of a proxy", answering(503, "upstream reset"), [2]int32{2, 0}, true},
		{"rate limit", answering(429, says("rate limit quota exceeded")), [2]int32{2, 0}, true},
		{"denied", answering(403, says("permission denied")), [2]int32{2, 0}, true},
		{"not Vault", answering(200, "<html>"), [2]int32{2, 0}, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			a, b := newVaultAt(t, row.first), newVaultAt(t, answering(200, dbAnswer))
			if row.first == nil {
				a.URL = refusedURL(t)
			}
			s := source(t, Config{Addr: a.URL, Alternates: []string{b.URL, a.URL}})
			_, err := s.Read(t.Context(), mount, opened(), creds)
			require.Equal(t, row.refused, err != nil, "%v", err)
			_, _ = s.Read(t.Context(), mount, opened(), creds)
			asked := [2]int32{a.asked.Load(), b.asked.Load()}
			require.Equal(t, row.reads, asked, "the second read goes where the first had an answer")
		})
	}
}

func TestEveryAddressFails(t *testing.T) {
	gone := refusedURL(t)
	sealed := newVaultAt(t, answering(503, `{"errors":["Vault is sealed"]}`))
	s := source(t, Config{Addr: gone, Alternates: []string{sealed.URL}})
	for range 2 {
		_, err := s.Read(t.Context(), mount, opened(), creds)
		f := failure(t, err)
		require.Equal(t, lease.Retry, f.Verdict)
		require.Equal(t, provider.Unavailable, f.Problem.Class)
		require.False(t, f.MayHaveMinted)
		require.Regexp(t, `^asking Vault at `+sealed.URL+` for "database/creds/orders" with Vault role "orders": Vault is sealed or not initialised `+
			`\(after \d+m?s; before that `+gone+` after \d+m?s: the connection is refused\); unseal Vault$`, f.Error())
	}
	require.EqualValues(t, 2, sealed.asked.Load())
}

func TestOwnAddressStandsAlone(t *testing.T) {
	gone := refusedURL(t)
	b := newVaultAt(t, answering(200, dbAnswer))
	s := source(t, Config{Addr: gone, Alternates: []string{b.URL}})
	se := opened()
	se.Login.Address = gone
	_, err := s.Read(t.Context(), mount, se, creds)
	require.Contains(t, failure(t, err).Error(), "the connection is refused; check")
	require.Zero(t, b.asked.Load())
}

func TestCallsOfEveryKindMove(t *testing.T) {
	gone := refusedURL(t)
	b := newVaultAt(t, answering(200, `{"lease_id":"id","lease_duration":60,"renewable":true,"auth":{"client_token":"t","lease_duration":60,"renewable":true}}`))
	for name, ask := range map[string]func(s *Source) error{
		"login":       func(s *Source) error { _, err := s.Login(t.Context(), mount, login(), identity()); return err },
		"renew token": func(s *Source) error { _, err := s.RenewSession(t.Context(), mount, opened()); return err },
		"renew lease": func(s *Source) error {
			_, err := s.RenewLease(t.Context(), mount, opened(), "id", time.Hour)
			return err
		},
		"end token": func(s *Source) error { return s.EndSession(t.Context(), mount, opened()) },
		"end lease": func(s *Source) error { return s.EndLease(t.Context(), mount, opened(), "id") },
	} {
		t.Run(name, func(t *testing.T) {
			s := source(t, Config{Addr: gone, Alternates: []string{b.URL}})
			require.NoError(t, ask(s))
		})
	}
}

// A network that drops packets costs one call a minute the time to dial.
func TestFirstAddressIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := bubbled(t, answering(200, dbAnswer))
		s.addrs.all = []string{"http://a:8200", "http://b:8200"}
		through, dials := s.clients.dial, map[string]int{}
		away := true
		s.clients.dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			dials[addr]++
			if away && strings.HasPrefix(addr, "a:") {
				time.Sleep(dialTimeout)
				return nil, &net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded}
			}
			return through(ctx, network, addr)
		}
		took := func() time.Duration {
			start := time.Now()
			_, err := s.Read(t.Context(), mount, opened(), creds)
			require.NoError(t, err)
			return time.Since(start)
		}
		require.Equal(t, dialTimeout, took())
		require.Zero(t, took(), "calls stay where they were answered")
		time.Sleep(firstAgain)
		require.Equal(t, dialTimeout, took(), "one tries the first again")
		require.Zero(t, took())
		require.Equal(t, 2, dials["a:8200"])
		away = false
		time.Sleep(firstAgain)
		require.Zero(t, took())
		require.Zero(t, took())
		require.Equal(t, 3, dials["a:8200"])
		require.Equal(t, "http://a:8200", s.addrs.pick(), "and calls are back")
		s.clients.close()
	})
}

func TestAddressesOfOneCluster(t *testing.T) {
	_, err := New(Config{Addr: "https://a:8200", Alternates: []string{"http://b:8200"}})
	require.EqualError(t, err, "reading Vault addresses: https://a:8200 and http://b:8200 are of one cluster, and only one uses TLS")
	s := source(t, Config{
		Addr: "https://a:8200", Alternates: []string{"https://b:8200", "https://A:8200/"}, AllowedAddrs: []string{"https://c:8200"},
		ClientCert: "/c.pem", ClientKey: "/k.pem",
	})
	require.Equal(t, []string{"https://a:8200", "https://b:8200"}, s.addrs.all)
	for addr, cert := range map[string]string{"": "/c.pem", "https://b:8200": "/c.pem", "https://c:8200": ""} {
		to, err := s.resolve(provider.Login{Method: "jwt", Address: addr})
		require.Nil(t, err)
		require.Equal(t, cert, to.cert.path, addr)
	}
}

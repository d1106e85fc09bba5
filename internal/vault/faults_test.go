package vault

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/internal/gate"
	"github.com/tenure-csi/tenure/internal/lease"
	"github.com/tenure-csi/tenure/provider"
)

const dbAnswer = `{"request_id":"r1","lease_id":"database/creds/orders/x","lease_duration":3600,"renewable":true,"data":{"username":"v-orders","password":"canary-password-7Qw"}}`

func TestFaultyAnswers(t *testing.T) {
	page := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = w.Write([]byte("<html>" + canaryPass + "</html>"))
	}
	cut := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "1000")
		_, _ = w.Write([]byte(dbAnswer[:40]))
	}
	reset := func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }
	header := func(status int, key, value string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set(key, value)
			answering(status, `{"errors":["request path \"kv1/a\": rate limit quota exceeded"]}`)(w, r)
		}
	}
	for _, row := range []struct {
		name    string
		handler http.HandlerFunc
		verdict lease.Verdict
		class   provider.Class
		minted  bool
		after   time.Duration
		says    string
	}{
		{"204", answering(204, ""), lease.Wrong, provider.Invalid, true, 0, "holds no data"},
		{"empty body", answering(200, ""), lease.Retry, provider.Unavailable, true, 0, "answer is empty"},
		{"null", answering(200, "null"), lease.Wrong, provider.Invalid, true, 0, "holds no data"},
		{"array", answering(200, "[1]"), lease.Retry, provider.Unavailable, true, 0, "not the JSON of Vault"},
		{"page", page, lease.Retry, provider.Unavailable, true, 0, "not the JSON of Vault (text/html)"},
		{"cut JSON", answering(200, dbAnswer[:60]), lease.Retry, provider.Unavailable, true, 0, "not the JSON of Vault"},
		{"cut connection in the answer", cut, lease.Retry, provider.Unavailable, true, 0, "connection broke before the answer"},
		{"cut connection after the request", reset, lease.Retry, provider.Unavailable, true, 0, "connection broke before the answer"},
		{"more than 4 MiB", answering(200, `{"data":{"a":"`+strings.Repeat("x", maxBody)+`"}}`), lease.Wrong, provider.Exhausted, true, 0, "larger than 4 MiB"},
		{"duration beyond int", answering(200, `{"lease_id":"a","lease_duration":99999999999999999999,"data":{}}`), lease.Retry, provider.Unavailable, true, 0, "not the JSON of Vault"},
		{"lease without time", answering(200, `{"lease_id":"a","lease_duration":0,"data":{"a":1}}`), lease.Retry, provider.Invalid, true, 0, "no time left"},
		{"token in place of data", answering(200, `{"auth":{"client_token":"`+canaryToken+`"}}`), lease.Wrong, provider.Invalid, true, 0, "a Vault token, not data"},
		{"429", answering(429, `{"errors":["request path \"kv1/a\": rate limit quota exceeded"]}`), lease.Retry, provider.Exhausted, false, 0, "rate limit quota exceeded"},
		{"429 with seconds", header(429, "Retry-After", "7"), lease.Retry, provider.Exhausted, false, 7 * time.Second, "429"},
		{"429 with an absurd wait", header(429, "Retry-After", "99999999"), lease.Retry, provider.Exhausted, false, maxRetryAfter, "429"},
		{"redirect by a proxy", header(302, "Location", "https://login.example.com"), lease.Wrong, provider.Invalid, false, 0, "302, a redirect"},
		{"redirect elsewhere", header(307, "Location", "http://127.0.0.2:1/v1/x"), lease.Retry, provider.Unavailable, false, 0, "redirect to http://127.0.0.2:1, which is not among the allowed"},
		{"redirect to nowhere", header(307, "Location", ""), lease.Retry, provider.Unavailable, false, 0, "redirect without an address"},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := served(t, row.handler)
			_, err := s.Read(t.Context(), mount, opened(), creds)
			f := failure(t, err)
			require.Equal(t, row.verdict, f.Verdict, f.Error())
			require.Equal(t, row.class, f.Problem.Class)
			require.Equal(t, row.minted, f.MayHaveMinted)
			require.Equal(t, row.after, f.RetryAfter)
			require.Contains(t, f.Error(), row.says)
			requireClean(t, f)
		})
	}
}

func TestRefusedConnectionMintsNothing(t *testing.T) {
	s := source(t, Config{Addr: refusedURL(t)})
	_, err := s.Read(t.Context(), mount, opened(), creds)
	f := failure(t, err)
	require.Equal(t, lease.Retry, f.Verdict)
	require.False(t, f.MayHaveMinted)
	require.Contains(t, f.Error(), "connection is refused")
	require.Equal(t, 1, counted(t, s.metrics.requests, "none"))
}

// A connection that was kept and breaks under a request must not make net/http
// send the read again.
func TestDynamicReadIsNeverSentTwice(t *testing.T) {
	var reads atomic.Int32
	s := served(t, func(w http.ResponseWriter, r *http.Request) {
		if reads.Add(1) == 2 {
			conn, _, err := w.(http.Hijacker).Hijack()
			if err == nil {
				_ = conn.(*net.TCPConn).SetLinger(0)
				conn.Close()
			}
			return
		}
		answering(200, dbAnswer)(w, r)
	})
	_, err := s.Read(t.Context(), mount, opened(), creds)
	require.NoError(t, err)
	_, err = s.Read(t.Context(), mount, opened(), creds)
	require.True(t, failure(t, err).MayHaveMinted)
	require.EqualValues(t, 2, reads.Load())
}

func TestRequestOnTheWire(t *testing.T) {
	for _, row := range []struct {
		name, line, body, length string
		read                     provider.Read
	}{
		{"GET has no body", "GET /v1/kv/a%20b%3Fc?list=1", "", "", provider.Read{Method: "GET", Path: "kv/a b?c", Query: map[string][]string{"list": {"1"}}}},
		{"PUT has the arguments", "PUT /v1/pki/issue/x", `{"common_name":"a","n":1}`, "25", provider.Read{Method: "PUT", Path: "pki/issue/x", Args: map[string]any{"common_name": "a", "n": 1}}},
	} {
		t.Run(row.name, func(t *testing.T) {
			var line, body, length string
			var header http.Header
			s := served(t, func(w http.ResponseWriter, r *http.Request) {
				raw, _ := io.ReadAll(r.Body)
				line, body, length, header = r.Method+" "+r.RequestURI, string(raw), r.Header.Get("Content-Length"), r.Header
				if r.ContentLength > 0 {
					length = fmt.Sprint(r.ContentLength)
				}
				answering(200, `{"data":{"a":"b"}}`)(w, r)
			})
			se := opened()
			se.Login.Namespace = "team-a"
			_, err := s.Read(t.Context(), mount, se, row.read)
			require.NoError(t, err)
			require.Equal(t, []string{row.line, row.body, row.length}, []string{line, body, length})
			require.Equal(t, canaryToken, header.Get("X-Vault-Token"))
			require.Equal(t, "team-a", header.Get("X-Vault-Namespace"))
			require.Equal(t, "true", header.Get("X-Vault-Request"))
			require.Empty(t, header.Get("Transfer-Encoding"))
		})
	}
}

func TestHangingVault(t *testing.T) {
	kv := provider.Read{Method: "GET", Path: "kv/a"}
	for _, row := range []struct {
		name   string
		ask    func(context.Context, *Source) error
		cancel time.Duration
		after  time.Duration
		minted bool
	}{
		{"dynamic read goes on after its caller", func(ctx context.Context, s *Source) error {
			_, err := s.Read(ctx, mount, opened(), creds)
			return err
		}, time.Second, mintTimeout, true},
		{"read that mints nothing is given up", func(ctx context.Context, s *Source) error {
			_, err := s.Read(ctx, mount, opened(), kv)
			return err
		}, time.Second, time.Second, false},
		{"read that mints nothing has 10 s", func(ctx context.Context, s *Source) error {
			_, err := s.Read(ctx, mount, opened(), kv)
			return err
		}, time.Hour, callTimeout, false},
		{"login has 10 s", func(ctx context.Context, s *Source) error {
			_, err := s.Login(ctx, mount, login(), identity())
			return err
		}, time.Hour, callTimeout, true},
		{"login goes on after its caller's deadline", func(ctx context.Context, s *Source) error {
			_, err := s.Login(ctx, mount, login(), identity())
			return err
		}, time.Second, callTimeout, true},
		{"login is given up with its caller", func(ctx context.Context, s *Source) error {
			ctx, cancel := context.WithCancel(ctx)
			time.AfterFunc(time.Second, cancel)
			_, err := s.Login(ctx, mount, login(), identity())
			return err
		}, time.Hour, time.Second, true},
		{"renewal has 10 s", func(ctx context.Context, s *Source) error {
			_, err := s.RenewLease(ctx, mount, opened(), "id", time.Hour)
			return err
		}, time.Hour, callTimeout, true},
	} {
		for _, mode := range []string{"hang", "trickle"} {
			t.Run(row.name+", "+mode, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					hang := false
					s := bubbled(t, func(w http.ResponseWriter, r *http.Request) {
						if !hang {
							answering(200, `{"data":{"a":"b"}}`)(w, r)
							return
						}
						_, _ = io.Copy(io.Discard, r.Body) // only then the server notices that the client left
						for r.Context().Err() == nil {
							if mode == "trickle" {
								_, _ = w.Write([]byte(" "))
								w.(http.Flusher).Flush()
							}
							time.Sleep(time.Second)
						}
					})
					_, err := s.Read(t.Context(), mount, opened(), kv)
					require.NoError(t, err)
					hang = true
					ctx, cancel := context.WithTimeout(t.Context(), row.cancel)
					defer cancel()
					start := time.Now()
					f := failure(t, row.ask(ctx, s))
					require.Equal(t, row.after, time.Since(start))
					require.Equal(t, provider.Deadline, f.Problem.Class, f.Error())
					require.Equal(t, row.minted, f.MayHaveMinted)
					require.Equal(t, lease.Retry, f.Verdict)
				})
			})
		}
	}
}

func TestOneHangingTenantDelaysNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := bubbled(t, func(w http.ResponseWriter, r *http.Request) {
			if strings.HasSuffix(r.URL.Path, "slow") {
				<-r.Context().Done()
				return
			}
			answering(200, dbAnswer)(w, r)
		})
		for range 20 {
			go func() {
				_, _ = s.Read(context.Background(), mount, opened(), provider.Read{Method: "GET", Path: "database/creds/slow"})
			}()
		}
		synctest.Wait()
		start := time.Now()
		for i := range 99 {
			by := lease.Caller{Pod: provider.Pod{Namespace: fmt.Sprint("good", i)}}
			_, err := s.Read(t.Context(), by, opened(), creds)
			require.NoError(t, err)
		}
		require.Zero(t, time.Since(start))
		time.Sleep(2 * mintTimeout)
		synctest.Wait()
	})
}

func TestCallerLeavesTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := bubbled(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		for range gate.Slots / 2 {
			go func() { _, _ = s.Read(context.Background(), mount, opened(), creds) }()
		}
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := s.Read(ctx, mount, opened(), creds)
		f := failure(t, err)
		require.ErrorIs(t, f.Problem.Err, context.DeadlineExceeded)
		require.False(t, f.MayHaveMinted, "it was never sent")

		time.Sleep(gate.SlowAfter)
		_, err = s.Read(t.Context(), mount, opened(), creds)
		f = failure(t, err)
		require.Equal(t, provider.Exhausted, f.Problem.Class)
		require.Contains(t, f.Error(), "8 calls of namespace shop have had no answer for over 5s")
		time.Sleep(mintTimeout)
		synctest.Wait()
	})
}

func TestLaggingNodeIsAskedThroughTheActiveOne(t *testing.T) {
	const dead = `{"errors":["2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n"]}`
	for _, row := range []struct {
		name          string
		first, second http.HandlerFunc
		asked         int32
		verdict       lease.Verdict
		ok            bool
	}{
		{"412 then success", answering(412, `{"errors":["required index state not present"]}`), answering(200, dbAnswer), 2, 0, true},
		{"unknown token then success", answering(403, dead), answering(200, dbAnswer), 2, 0, true},
		{"unknown token everywhere", answering(403, dead), answering(403, dead), 2, lease.DeadAuth, false},
		{"forwarding not allowed", answering(403, dead), answering(400, `{"errors":["no"]}`), 2, lease.DeadAuth, false},
		{"a denial is the answer", answering(403, `{"errors":["1 error occurred:\n\t* permission denied\n\n"]}`), answering(200, dbAnswer), 1, lease.Refused, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			var asked atomic.Int32
			s := served(t, func(w http.ResponseWriter, r *http.Request) {
				if asked.Add(1) == 1 {
					row.first(w, r)
					return
				}
				if r.Header.Get("X-Vault-Inconsistent") != "forward-active-node" {
					http.Error(w, "header missing", http.StatusTeapot)
					return
				}
				row.second(w, r)
			})
			_, err := s.Read(t.Context(), mount, opened(), creds)
			require.Equal(t, row.asked, asked.Load())
			if row.ok {
				require.NoError(t, err)
				return
			}
			require.Equal(t, row.verdict, failure(t, err).Verdict)
		})
	}
}

func TestStandbyRedirects(t *testing.T) {
	var tokens atomic.Int32
	active := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Vault-Token") == canaryToken && r.Method == http.MethodPut && r.ContentLength > 0 {
			tokens.Add(1)
		}
		answering(200, dbAnswer)(w, r)
	}))
	defer active.Close()
	gone := refusedURL(t)
	put := provider.Read{Method: "PUT", Path: "database/creds/orders", Args: map[string]any{"ttl": "1h"}}
	for _, row := range []struct {
		name    string
		to      string
		allowed []string
		says    string
	}{
		{"to an allowed address, body and token too", active.URL + "/v1/elsewhere", []string{active.URL}, ""},
		{"to an address that is not allowed", active.URL + "/v1/x", nil, "not among the allowed addresses"},
		{"to a dead leader", gone + "/v1/x", []string{gone}, "connection is refused"},
	} {
		t.Run(row.name, func(t *testing.T) {
			tokens.Store(0)
			standby := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Location", row.to)
				w.WriteHeader(http.StatusTemporaryRedirect)
			}))
			defer standby.Close()
			s := source(t, Config{Addr: standby.URL, AllowedAddrs: row.allowed})
			_, err := s.Read(t.Context(), mount, opened(), put)
			if row.says == "" {
				require.NoError(t, err)
				require.EqualValues(t, 1, tokens.Load())
				return
			}
			f := failure(t, err)
			require.Contains(t, f.Error(), row.says)
			require.False(t, f.MayHaveMinted)
			require.Zero(t, tokens.Load())
		})
	}
}

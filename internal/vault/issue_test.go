package vault

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/internal/lease"
	"github.com/tenure-csi/tenure/provider"
)

var noon = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

func decoded(t *testing.T, body string) answer {
	t.Helper()
	var a answer
	d := json.NewDecoder(strings.NewReader(body))
	d.UseNumber()
	require.NoError(t, d.Decode(&a.response))
	return a
}

func TestIssue(t *testing.T) {
	unix := func(d time.Duration) int64 { return noon.Add(d).Unix() }
	for _, row := range []struct {
		name, method, body string
		want               lease.Issued // without Secret
		data               map[string]any
		expires            time.Duration // from noon; 0: none
	}{
		{
			"database", "GET", dbAnswer,
			lease.Issued{Kind: lease.Leased, LeaseID: "database/creds/orders/x", TTL: time.Hour, Renewable: true},
			map[string]any{"username": "v-orders", "password": canaryPass},
			0,
		},
		{
			"lease that can't be renewed", "GET", `{"lease_id":"x/1","lease_duration":899,"renewable":false,"data":{"a":"b"}}`,
			lease.Issued{Kind: lease.Leased, LeaseID: "x/1", TTL: 899 * time.Second},
			nil, 899 * time.Second,
		},
		{
			"kv 1", "GET", `{"lease_id":"","lease_duration":2764800,"renewable":true,"data":{"a":"b","ttl":"90s"}}`,
			lease.Issued{Kind: lease.Polled},
			map[string]any{"a": "b", "ttl": "90s"},
			0,
		},
		{
			"kv 1 that looks like others", "GET", `{"mount_type":"kv","data":{"access_key":"a","secret_key":"b","session_token":"c","ttl":3600,"certificate":"c","expiration":1,"last_vault_rotation":"x"}}`,
			lease.Issued{Kind: lease.Polled},
			nil, 0,
		},
		{
			"kv 1 with data and metadata of its own", "GET", `{"data":{"data":{"a":"b"},"metadata":{"x":1}}}`,
			lease.Issued{Kind: lease.Polled},
			map[string]any{"data": map[string]any{"a": "b"}, "metadata": map[string]any{"x": json.Number("1")}},
			0,
		},
		{
			"kv 2", "GET", `{"data":{"data":{"a":"b","n":12345678901234567890},"metadata":{"version":3,"created_time":"t","deletion_time":"","destroyed":false}}}`,
			lease.Issued{Kind: lease.Polled},
			map[string]any{"a": "b", "n": json.Number("12345678901234567890")},
			0,
		},
		{
			"kv 2 that will be deleted", "GET", `{"data":{"data":{"a":"b"},"metadata":{"version":3,"created_time":"t","deletion_time":"2026-11-21T12:10:00.5Z"}}}`,
			lease.Issued{Kind: lease.Polled, TTL: 10*time.Minute + 500*time.Millisecond},
			map[string]any{"a": "b"},
			10*time.Minute + 500*time.Millisecond,
		},
		{
			"pki", "PUT", fmt.Sprintf(`{"data":{"certificate":"c","private_key":"k","expiration":%d}}`, unix(24*time.Hour)),
			lease.Issued{Kind: lease.Leased, TTL: 24 * time.Hour},
			nil, 24 * time.Hour,
		},
		{
			"pki with a lease", "POST", fmt.Sprintf(`{"lease_id":"pki/issue/x/1","lease_duration":3600,"data":{"certificate":"c","expiration":%d}}`, unix(time.Hour)),
			lease.Issued{Kind: lease.Leased, LeaseID: "pki/issue/x/1", TTL: time.Hour},
			nil, time.Hour,
		},
		{
			"static role", "GET", `{"data":{"username":"u","password":"p","ttl":12,"rotation_period":15,"last_vault_rotation":"2026-11-21T11:59:57Z"}}`,
			lease.Issued{Kind: lease.Static, Next: 12 * time.Second},
			nil, 0,
		},
		{
			"static role about to rotate", "GET", `{"data":{"username":"u","password":"p","ttl":0,"rotation_schedule":"* * * * *","last_vault_rotation":"x"}}`,
			lease.Issued{Kind: lease.Static, Next: time.Second},
			nil, 0,
		},
		{
			"aws session", "GET", `{"lease_id":"aws/sts/x/1","lease_duration":3599,"renewable":false,"mount_type":"aws","data":{"access_key":"A","secret_key":"B","session_token":"C","security_token":"C","ttl":3599}}`,
			lease.Issued{Kind: lease.Leased, TTL: 3599 * time.Second, Headroom: 20 * time.Minute},
			nil, 3599 * time.Second,
		},
		{
			"aws session that ends before its lease", "PUT", `{"lease_id":"aws/sts/x/1","lease_duration":7200,"data":{"access_key":"A","secret_key":"B","session_token":"C","ttl":899}}`,
			lease.Issued{Kind: lease.Leased, TTL: 899 * time.Second, Headroom: 20 * time.Minute},
			nil, 899 * time.Second,
		},
		{
			"aws session that outlives its lease", "GET", `{"lease_id":"aws/sts/x/1","lease_duration":900,"data":{"access_key":"A","secret_key":"B","session_token":"C","ttl":3600}}`,
			lease.Issued{Kind: lease.Leased, TTL: 900 * time.Second, Headroom: 20 * time.Minute},
			nil, 900 * time.Second,
		},
		{
			"aws session of a role with no_lease", "GET", `{"lease_duration":2764800,"data":{"access_key":"A","secret_key":"B","security_token":"C","ttl":3599}}`,
			lease.Issued{Kind: lease.Leased, TTL: 3599 * time.Second, Headroom: 20 * time.Minute},
			nil, 3599 * time.Second,
		},
		{
			"aws user", "GET", `{"lease_id":"aws/creds/x/1","lease_duration":3600,"renewable":true,"mount_type":"aws","data":{"access_key":"A","secret_key":"B","session_token":null}}`,
			lease.Issued{Kind: lease.Leased, LeaseID: "aws/creds/x/1", TTL: time.Hour, Renewable: true},
			nil, 0,
		},
		{
			"aws static role", "GET", `{"mount_type":"aws","data":{"access_key":"A","secret_key":"B"}}`,
			lease.Issued{Kind: lease.Polled},
			nil, 0,
		},
		{"issued without an end", "PUT", `{"data":{"signed_key":"k"}}`, lease.Issued{Kind: lease.Once}, nil, 0},
		{
			"enormous lease", "GET", `{"lease_id":"x","lease_duration":9223372036854775807,"renewable":true,"data":{"a":1}}`,
			lease.Issued{Kind: lease.Leased, LeaseID: "x", TTL: math.MaxInt32 * time.Second, Renewable: true},
			nil, 0,
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			got, f := issue(call{op: opRead, method: row.method, path: "p"}, decoded(t, row.body), noon)
			require.Nil(t, f)
			if row.data != nil {
				require.Equal(t, row.data, got.Secret.Data)
			}
			var expires time.Time
			if row.expires > 0 {
				expires = noon.Add(row.expires)
			}
			require.Equal(t, expires, got.Secret.Expires)
			row.want.Secret = got.Secret
			require.Equal(t, row.want, got)
		})
	}
	_, f := issue(call{op: opRead, method: "PUT", mints: true}, decoded(t, `{"data":{"certificate":"c","expiration":1}}`), noon)
	require.Equal(t, lease.Retry, f.Verdict)
	require.True(t, f.MayHaveMinted)
	_, f = issue(call{op: opRead, method: "GET"}, decoded(t, `{"data":{"data":null,"metadata":{"version":1,"created_time":"t","destroyed":true}}}`), noon)
	require.Contains(t, f.Error(), "destroyed")
}

// The envelope is what the HashiCorp provider writes: the response, field by field.
func TestEnvelope(t *testing.T) {
	const body = `{"request_id":"r","lease_id":"","renewable":false,"lease_duration":0,"data":{"n":12345678901234567890},"wrap_info":null,"warnings":null,"auth":null,"mount_type":"kv"}`
	got, f := issue(call{op: opRead, method: "GET"}, decoded(t, body), noon)
	require.Nil(t, f)
	raw, err := json.Marshal(got.Secret.Envelope)
	require.NoError(t, err)
	require.Contains(t, string(raw), `"n":12345678901234567890`)
	require.JSONEq(t, `{"request_id":"r","lease_id":"","renewable":false,"lease_duration":0,"data":{"n":12345678901234567890},"warnings":null,"mount_type":"kv"}`, string(raw))
}

// FuzzIssue: whatever the JSON, nothing panics, and what is issued has data and
// an end that fits its kind.
func FuzzIssue(f *testing.F) {
	f.Add(dbAnswer, true)
	f.Add(`{"data":{"data":{"a":"b"},"metadata":{"version":3,"created_time":"t","deletion_time":"2026-11-21T12:10:00Z"}}}`, true)
	f.Add(`{"data":{"certificate":"c","expiration":9223372036854775807}}`, false)
	f.Add(`{"data":{"access_key":"c","secret_key":{},"ttl":-1}}`, false)
	f.Add(`{"lease_id":"x","lease_duration":1,"data":{"access_key":"c","secret_key":"d","session_token":"e","ttl":9223372036854775807}}`, true)
	f.Fuzz(func(t *testing.T, body string, get bool) {
		r, err := decode(strings.NewReader(body))
		if err != nil {
			return
		}
		method := map[bool]string{true: "GET", false: "PUT"}[get]
		got, fail := issue(call{op: opRead, method: method}, answer{response: r}, noon)
		if fail != nil {
			require.NotEmpty(t, fail.Problem.Cause)
			return
		}
		require.NotNil(t, got.Secret.Data)
		require.GreaterOrEqual(t, got.TTL, time.Duration(0))
		require.True(t, got.LeaseID == "" || got.Kind == lease.Leased && got.TTL > 0)
		require.True(t, got.Kind != lease.Leased || got.TTL > 0)
		require.True(t, !got.Renewable || got.LeaseID != "" && got.Secret.Expires.IsZero())
		require.Equal(t, got.Kind == lease.Static, got.Next > 0)
		require.True(t, get || got.Kind != lease.Polled)
	})
}

func TestKnownReadsAreBounded(t *testing.T) {
	var k known
	for i := range 3 * maxKnown {
		k.set(fmt.Sprint(i), true)
	}
	require.Len(t, k.reads, maxKnown)
	require.True(t, k.has(fmt.Sprint(3*maxKnown-1)))
	k.set(fmt.Sprint(3*maxKnown-1), false)
	require.False(t, k.has(fmt.Sprint(3*maxKnown-1)))
}

func TestSessionsOfOtherAddressesAreRefused(t *testing.T) {
	s := source(t, Config{Addr: "https://vault:8200"})
	se := opened()
	se.Login.Address = "https://evil.example.com"
	_, err := s.Read(t.Context(), mount, se, creds)
	f := failure(t, err)
	require.Equal(t, provider.Denied, f.Problem.Class)
	require.Equal(t, "vaultAddress", f.Problem.Field)
}

package provider

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestTokenForRefuses(t *testing.T) {
	with := func(token string) Identity {
		return Identity{Tokens: map[string]Token{"vault": {Value: Secret(token)}}}
	}
	claim := func(more string) Identity { return with(jwt(`{"sub":"system:serviceaccount:shop:web"` + more + `}`)) }
	good := jwt(`{"sub":"system:serviceaccount:shop:web"}`)
	synctest.Test(t, func(t *testing.T) {
		past := fmt.Sprint(time.Now().Unix())
		many := Identity{Tokens: map[string]Token{}}
		for i := range 20 {
			many.Tokens[fmt.Sprint("aud-", i)] = Token{Value: "canary"}
		}
		var rows []string
		for _, tc := range []struct {
			name     string
			audience string
			id       Identity
			class    Class
		}{
			{"none", "", Identity{}, Precondition},
			{"wrong audience only", "custom", with("canary"), Precondition},
			{"wrong audiences, many", "custom", many, Precondition},
			{"empty", "", with(""), Invalid},
			{"two parts", "", with("canary.canary"), Invalid},
			{"four parts", "", with(good + ".canary"), Invalid},
			{"padded", "", with(good + "="), Invalid},
			{"plain base64", "", with(strings.Replace(good, ".", "/.", 1)), Invalid},
			{"empty part", "", with(good[:strings.LastIndex(good, ".")+1]), Invalid},
			{"claims no JSON", "", with(jwt("canary")), Invalid},
			{"claims an array", "", with(jwt(`["canary"]`)), Invalid},
			{"expires no number", "", claim(`,"exp":"canary"`), Invalid},
			{"no sub", "", with(jwt(`{}`)), Denied},
			{"other service account", "", with(jwt(`{"sub":"system:serviceaccount:shop:admin"}`)), Denied},
			{"other namespace claim", "", claim(`,"kubernetes.io":{"namespace":"other"}`), Denied},
			{"other service account claim", "", claim(`,"kubernetes.io":{"serviceaccount":{"name":"admin"}}`), Denied},
			{"other pod", "", claim(`,"kubernetes.io":{"pod":{"name":"web-0","uid":"other"}}`), Denied},
			{"expired by its claim", "", claim(`,"exp":` + past), Precondition},
			{"expired by kubelet", "", Identity{Tokens: map[string]Token{"vault": {Value: Secret(good), Expires: time.Now()}}}, Precondition},
		} {
			_, err := tc.id.TokenFor(tc.audience, testPod)
			var e *Error
			require.ErrorAs(t, err, &e, tc.name)
			require.Equal(t, tc.class, e.Class, tc.name)
			require.NotContains(t, err.Error(), "canary", tc.name)
			rows = append(rows, tc.name+": "+err.Error())
		}
		golden(t, "token.golden", rows)
	})
}

func TestTokenFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		claimed, told := time.Now().Add(time.Hour).Truncate(time.Second), time.Now().Add(time.Minute)
		token := Secret(jwt(fmt.Sprintf(`{"aud":["vault"],"exp":%d,"sub":"system:serviceaccount:shop:web",
			"kubernetes.io":{"namespace":"shop","serviceaccount":{"name":"web","uid":"x"},"pod":{"name":"web-0","uid":%q}}}`, claimed.Unix(), uid)))
		id := Identity{Tokens: map[string]Token{"vault": {Value: token}, "custom": {Value: token, Expires: told}}}

		got, err := id.TokenFor("", testPod)
		require.NoError(t, err)
		require.Equal(t, token.Reveal(), got.Value.Reveal())
		require.True(t, got.Expires.Equal(claimed), "the claim stands in for what kubelet did not tell")

		got, err = id.TokenFor("custom", testPod)
		require.NoError(t, err)
		require.True(t, got.Expires.Equal(told), "the earlier end counts")

		time.Sleep(time.Minute)
		_, err = id.TokenFor("custom", testPod)
		require.Error(t, err)
		_, err = id.TokenFor("vault", testPod)
		require.NoError(t, err)
	})
}

func TestClaimed(t *testing.T) {
	for _, row := range []struct {
		name, token string
		pod         Pod
		audiences   []string
	}{
		{
			"bound to a pod", jwt(`{"sub":"system:serviceaccount:shop:web","aud":["vault","api"],"kubernetes.io":{"pod":{"name":"web-0","uid":"u-1"}}}`),
			Pod{Name: "web-0", Namespace: "shop", UID: "u-1", ServiceAccount: "web"},
			[]string{"vault", "api"},
		},
		{"one audience", jwt(`{"sub":"system:serviceaccount:shop:web","aud":"vault"}`), Pod{Namespace: "shop", ServiceAccount: "web"}, []string{"vault"}},
		{"no audience", jwt(`{"sub":"system:serviceaccount:shop:web"}`), Pod{}, nil},
		{"odd audience", jwt(`{"sub":"system:serviceaccount:shop:web","aud":{"a":1}}`), Pod{}, nil},
		{"a person's", jwt(`{"sub":"jane","aud":"vault"}`), Pod{}, nil},
		{"no name", jwt(`{"sub":"system:serviceaccount:shop","aud":"vault"}`), Pod{}, nil},
		{"no JWT", "hvs.canary", Pod{}, nil},
	} {
		t.Run(row.name, func(t *testing.T) {
			pod, audiences, ok := Claimed(Secret(row.token))
			require.Equal(t, row.pod, pod)
			require.Equal(t, row.audiences, audiences)
			require.Equal(t, row.audiences != nil, ok)
		})
	}
}

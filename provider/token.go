package provider

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"time"
)

// DefaultAudience is the audience whose token logs in where the SPC names none,
// as with the HashiCorp provider.
const DefaultAudience = "vault"

// STSAudience is the audience whose token is exchanged at STS where the SPC names
// none: the one that AWS's own set-up of EKS uses.
const STSAudience = "sts.amazonaws.com"

// parseTokens reads {"<audience>":{"token":"…","expirationTimestamp":"…"}}, the
// form that the CSI specification of kubelet gives them. Errors never quote it.
func parseTokens(text string) (map[string]Token, error) {
	if text == "" {
		return nil, nil
	}
	var sent map[string]struct {
		Token   string    `json:"token"`
		Expires time.Time `json:"expirationTimestamp"`
	}
	if json.Unmarshal([]byte(text), &sent) != nil {
		return nil, invalid(tokensKey+" of the Mount call is not kubelet's JSON", "leave it out of the pod's volumeAttributes")
	}
	tokens := make(map[string]Token, len(sent))
	for audience, t := range sent {
		tokens[audience] = Token{Value: Secret(t.Token), Expires: t.Expires}
	}
	return tokens, nil
}

// claims are what a service account token says of itself; see the bound service
// account tokens of Kubernetes.
type claims struct {
	Subject    string          `json:"sub"`
	Audience   json.RawMessage `json:"aud"` // a text or a list of them
	Expires    float64         `json:"exp"` // seconds since 1970; 0: not told
	Kubernetes struct {
		Namespace      string `json:"namespace"`
		ServiceAccount struct {
			Name string `json:"name"`
		} `json:"serviceaccount"`
		Pod struct {
			Name string `json:"name"`
			UID  string `json:"uid"`
		} `json:"pod"`
	} `json:"kubernetes.io"`
}

// Claimed returns what a service account token says of itself: whose it is, with
// a pod's name and UID only where it is bound to one, and for which audiences.
// Nothing is verified. It is not ok for anything but a service account's JWT.
func Claimed(jwt Secret) (pod Pod, audiences []string, ok bool) {
	c, ok := parseClaims(jwt.Reveal())
	account, isAccount := strings.CutPrefix(c.Subject, "system:serviceaccount:")
	namespace, name, whole := strings.Cut(account, ":")
	if !ok || !isAccount || !whole {
		return Pod{}, nil, false
	}
	if json.Unmarshal(c.Audience, &audiences) != nil {
		audiences = make([]string, 1)
		if json.Unmarshal(c.Audience, &audiences[0]) != nil {
			return Pod{}, nil, false
		}
	}
	return Pod{Name: c.Kubernetes.Pod.Name, Namespace: namespace, UID: c.Kubernetes.Pod.UID, ServiceAccount: name}, audiences, true
}

// TokenFor returns the pod's token for audience; an empty audience means "vault".
// It refuses one that is expired or says that it is another pod's, but verifies
// no signature: that is Vault's. Where kubelet did not tell, Expires is the
// token's own claim. Errors are *Error: Precondition without a token that is
// still good, Invalid for one that is no JWT, Denied for another pod's.
func (id Identity) TokenFor(audience string, pod Pod) (Token, error) {
	token, err := id.token(audience, pod)
	if err == nil && !token.Expires.IsZero() && !time.Now().Before(token.Expires) {
		return Token{}, expired(audience, token)
	}
	return token, err
}

// Until tells up to when the identity can log in, and why it can't from then on.
// why is nil where no end is known; end is zero where it can't even now. Only a
// token or a Secret that the login needs is looked at; others have no end.
func (id Identity) Until(login Login, pod Pod) (end time.Time, why error) {
	switch {
	case login.ByToken():
		token, err := id.token(login.Audience, pod)
		if err != nil || token.Expires.IsZero() {
			return time.Time{}, err
		}
		return token.Expires, expired(login.Audience, token)
	case login.Method == AppRoleMethod:
		_, _, why = id.AppRole()
	}
	return time.Time{}, why
}

// token is TokenFor, of an expired token too.
func (id Identity) token(audience string, pod Pod) (Token, error) {
	audience = cmp.Or(audience, DefaultAudience)
	token, ok := id.Tokens[audience]
	if !ok {
		return Token{}, missingToken(audience, id.Tokens)
	}
	c, ok := parseClaims(token.Value.Reveal())
	if !ok {
		return Token{}, tokenError(Invalid, audience, "is empty or no JWT", "leave "+tokensKey+" out of the pod's volumeAttributes")
	}
	if wrong := c.mismatch(pod); wrong != "" {
		return Token{}, tokenError(Denied, audience, "is not this pod's: its "+wrong, "leave "+tokensKey+" out of the pod's volumeAttributes")
	}
	if claimed := time.Unix(int64(c.Expires), 0); c.Expires > 0 && (token.Expires.IsZero() || claimed.Before(token.Expires)) {
		token.Expires = claimed
	}
	return token, nil
}

// expired is the error for a token after its end.
func expired(audience string, t Token) *Error {
	tense := "expired"
	if time.Now().Before(t.Expires) {
		tense = "expires"
	}
	return tokenError(Precondition, cmp.Or(audience, DefaultAudience), tense+" at "+t.Expires.UTC().Format(time.RFC3339)+
		" and a fresh one comes with the next republish", "see that the driver runs with enableSecretRotation: true")
}

func tokenError(class Class, audience, what, remedy string) *Error {
	return &Error{Class: class, Field: "audience", Cause: "the pod's service account token for audience " + quote(audience) + " " + what, Remedy: remedy}
}

func missingToken(audience string, have map[string]Token) *Error {
	there := "none"
	if len(have) > 0 {
		var audiences []string
		for _, a := range slices.Sorted(maps.Keys(have)) {
			audiences = append(audiences, quote(a))
		}
		audiences = audiences[:min(len(audiences), 8)] // an author may send any number
		there = strings.Join(audiences, ", ")
	}
	return tokenError(Precondition, audience, "did not come with the Mount call (audiences that came: "+there+")",
		"in the CSIDriver secrets-store.csi.k8s.io set tokenRequests: [{audience: "+quote(audience)+"}], beside those it has, and requiresRepublish: true")
}

// parseClaims reads the claims of a JWT: three parts in base64url without padding.
func parseClaims(jwt string) (c claims, ok bool) {
	parts := strings.Split(jwt, ".")
	if len(parts) != 3 {
		return c, false
	}
	var payload []byte
	for i, part := range parts {
		decoded, err := base64.RawURLEncoding.DecodeString(part)
		if err != nil || len(decoded) == 0 {
			return c, false
		}
		if i == 1 {
			payload = decoded
		}
	}
	return c, json.Unmarshal(payload, &c) == nil
}

// mismatch names the first claim that is not pod's; claims but sub may be absent.
func (c claims) mismatch(pod Pod) string {
	differs := func(claim, want string) bool { return claim != "" && claim != want }
	switch {
	case c.Subject != "system:serviceaccount:"+pod.Namespace+":"+pod.ServiceAccount:
		return "claim sub is not system:serviceaccount:" + pod.Namespace + ":" + pod.ServiceAccount
	case differs(c.Kubernetes.Namespace, pod.Namespace):
		return "claim kubernetes.io.namespace is not " + pod.Namespace
	case differs(c.Kubernetes.ServiceAccount.Name, pod.ServiceAccount):
		return "claim kubernetes.io.serviceaccount.name is not " + pod.ServiceAccount
	case differs(c.Kubernetes.Pod.UID, pod.UID):
		return "claim kubernetes.io.pod.uid is not " + pod.UID
	}
	return ""
}

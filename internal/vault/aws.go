package vault

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/tenure-csi/tenure/internal/lease"
	"github.com/tenure-csi/tenure/provider"
)

// serverIDHeader is X-Vault-AWS-IAM-Server-ID as Go writes it. It binds such a
// request to one Vault, so that another that got it can't log in there with it; see
// iam_server_id_header_value of Vault's aws auth method.
const serverIDHeader = "X-Vault-Aws-Iam-Server-Id"

// CallerIdentity signs sts:GetCallerIdentity. Its method is called from many
// goroutines at once.
type CallerIdentity interface {
	// SignCallerIdentity answers a POST of GetCallerIdentity with headers beside its
	// own, all signed; its GetBody is set. With a token it signs with the session that
	// STS gives for the token and login.AWSRoleARN, without one with the daemon's own
	// credentials. Errors are *lease.Failure.
	SignCallerIdentity(ctx context.Context, by lease.Caller, login provider.Login, token provider.Secret, headers http.Header) (*http.Request, error)
}

// awsProof is proof out of the pod's or the daemon's identity at AWS.
func (s *Source) awsProof(ctx context.Context, by lease.Caller, login provider.Login, id provider.Identity) (map[string]any, []provider.Secret, error) {
	to, fault := s.resolve(login)
	if fault != nil {
		return nil, nil, fault
	}
	if s.cfg.AWS == nil {
		return nil, nil, &provider.Error{
			Class: provider.Precondition, Field: "vaultAuthMethod", Cause: "this daemon logs in to no Vault by way of AWS", Remedy: "use another vaultAuthMethod",
		}
	}
	var token provider.Token
	var err error
	if login.AWSIdentity == provider.NodeIdentity {
		err = s.nodeLogin(by.Pod, login)
	} else {
		token, err = id.TokenFor(login.Audience, by.Pod)
	}
	if err != nil {
		return nil, nil, err
	}
	signed, err := s.cfg.AWS.SignCallerIdentity(ctx, by, login, token.Value, http.Header{serverIDHeader: {s.serverID(to.addr)}})
	if err != nil {
		return nil, nil, err
	}
	body, secrets, err := iamRequest(login.Role, signed)
	return body, append(secrets, token.Value), err
}

// nodeLogin refuses to use the daemon's own identity where the cluster's operator
// does not allow it, or where the SPC says whom it is shown to.
func (s *Source) nodeLogin(pod provider.Pod, login provider.Login) error {
	plain := provider.Login{
		Method: login.Method, Namespace: login.Namespace, Mount: login.Mount, Role: login.Role, AWSIdentity: login.AWSIdentity,
	}
	switch {
	case login != plain:
		return &provider.Error{
			Class: provider.Denied, Field: "awsIdentity", Cause: "the node's identity is shown to the daemon's own Vault only, by the daemon's own TLS settings",
			Remedy: "leave out vaultAddress, vaultSkipTLSVerify, vaultCA… and vaultTLS…, or use awsIdentity: pod",
		}
	case s.cfg.NodeLogin == nil:
		return &provider.Error{
			Class: provider.Denied, Field: "awsIdentity", Cause: "no pod may log in with the node's identity here",
			Remedy: "use awsIdentity: pod, or have the operator allow it in --tenant-bindings",
		}
	}
	return s.cfg.NodeLogin(pod, login)
}

// serverID is what the login's signature is bound to.
func (s *Source) serverID(addr string) string {
	if slices.Contains(s.addrs.all, addr) {
		if s.cfg.AWSServerID != "" {
			return s.cfg.AWSServerID
		}
		addr = s.addrs.all[0] // the same whichever node of the cluster is asked
	}
	u, err := url.Parse(addr)
	if err != nil {
		panic(err) // addresses in use were parsed before
	}
	return u.Hostname()
}

// iamRequest is a signed request in the words of Vault's aws auth method, and
// what of it must not be seen.
func iamRequest(role string, r *http.Request) (body map[string]any, secrets []provider.Secret, err error) {
	reader, err := r.GetBody()
	if err != nil {
		return nil, nil, fmt.Errorf("reading the signed request: %w", err)
	}
	defer reader.Close()
	sent, err := io.ReadAll(reader)
	if err != nil {
		return nil, nil, fmt.Errorf("reading the signed request: %w", err)
	}
	headers, err := json.Marshal(r.Header)
	if err != nil {
		return nil, nil, fmt.Errorf("writing the signed request: %w", err)
	}
	for _, name := range []string{"Authorization", "X-Amz-Security-Token"} {
		secrets = append(secrets, provider.Secret(r.Header.Get(name)))
	}
	_, signature, _ := strings.Cut(r.Header.Get("Authorization"), "Signature=")
	return map[string]any{
		"role":                    role,
		"iam_http_request_method": r.Method,
		"iam_request_url":         base64.StdEncoding.EncodeToString([]byte(r.URL.String())),
		"iam_request_body":        base64.StdEncoding.EncodeToString(sent),
		"iam_request_headers":     base64.StdEncoding.EncodeToString(headers),
	}, append(secrets, provider.Secret(signature)), nil
}

// awsRefusals are Vault's reasons to refuse a login with the aws method, which
// hold what STS said to Vault, in the order they are looked for.
var awsRefusals = []refusal{
	{"server-id header", provider.Precondition, "", "have the operator set --vault-aws-server-id to iam_server_id_header_value of auth/{mount}/config/client"},
	{"does not belong to the role", provider.Denied, "roleName", "add the IAM role, written without its path, to bound_iam_principal_arn of Vault role {role}"},
	{"entry for role", provider.Denied, "roleName", "write the role at auth/{mount}/role/{role}, or correct roleName"},
	{"auth method iam not allowed", provider.Denied, "roleName", "set auth_type=iam on Vault role {role}"},
	{"signature expired", provider.Precondition, "", "compare the clocks of this node and of AWS"},
	{"signaturedoesnotmatch", provider.Precondition, "", "let sts_endpoint and sts_region of auth/{mount}/config/client name the STS of the daemon's --aws-region"},
	{"from sts", provider.Denied, "", "compare sts_endpoint of auth/{mount}/config/client with the daemon's --aws-region"},
	{"no handler for route", provider.Invalid, "vaultAuthMountPath", "enable the aws auth method at auth/{mount}, or correct vaultAuthMountPath or vaultNamespace"},
}

// upstream reports whether Vault could not ask STS, which it answers like a
// refusal.
func (a answer) upstream() bool {
	return a.says("error making request") || a.says("received error code 5") || a.says("received error code 429") || a.says("<code>throttling")
}

// awsKeys says what an answer of Vault's aws secrets engine is: a session of STS,
// which has a token beside its keys, or an access key of an IAM user.
func awsKeys(a answer) (session, user bool) {
	text := func(name string) bool { s, _ := a.Data[name].(string); return s != "" }
	if a.MountType != "aws" && a.MountType != "" || !text("access_key") || !text("secret_key") {
		return false, false
	}
	session = text("session_token") || text("security_token")
	return session, !session && a.LeaseID != ""
}

// awsSession sets the terms of a session of STS: nobody can renew it or end it
// early, and it outlives the token that asked for it, so that its lease id is
// good for nothing.
func awsSession(out *lease.Issued, a answer) {
	var life time.Duration
	if a.LeaseID != "" {
		life = seconds(a.LeaseDuration)
	}
	if ttl, ok := whole(a.Data["ttl"]); ok && ttl > 0 {
		if own := seconds(int(min(ttl, maxSeconds))); life == 0 || own < life {
			life = own // of a role with no_lease, or below a lease that Vault would keep for longer
		}
	}
	out.LeaseID, out.Renewable = "", false
	if life > 0 {
		out.Kind, out.TTL, out.Headroom = lease.Leased, life, lease.SessionHeadroom
	}
}

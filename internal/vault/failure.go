package vault

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"

	"github.com/tenure-csi/tenure/internal/gate"
	"github.com/tenure-csi/tenure/internal/lease"
	"github.com/tenure-csi/tenure/provider"
)

// about says what a call was for, as the begin of an error text.
func (c call) about() string {
	switch c.op {
	case opLogin:
		return fmt.Sprintf("logging in to Vault at %s with %s at auth/%s", c.to.addr, c.holder(), bounded(c.to.mount))
	case opRead:
		return fmt.Sprintf("asking Vault at %s for %q with %s", c.to.addr, bounded(c.path), c.holder())
	case opLookup:
		return "looking up the token at Vault at " + c.to.addr
	case opRenewToken:
		return "renewing the token of Vault at " + c.to.addr
	case opEndToken:
		return "revoking the token of Vault at " + c.to.addr
	case opEndLease:
		return "ending a lease of Vault at " + c.to.addr
	}
	return "renewing a lease of Vault at " + c.to.addr
}

// holder says whose policies decide.
func (c call) holder() string {
	switch {
	case c.borrowed:
		return "this token"
	case c.login.Method == provider.AppRoleMethod:
		return "the pod's AppRole"
	}
	return fmt.Sprintf("Vault role %q", bounded(c.to.role))
}

// fail is the one place where a Failure of a call is made.
func (c call) fail(v lease.Verdict, class provider.Class, field, cause, remedy string) *lease.Failure {
	if field == "roleName" && c.login.Method == provider.AppRoleMethod {
		field = provider.SecretRef // that is where its role comes from
	}
	return &lease.Failure{Verdict: v, Problem: provider.Error{
		Class: class, Field: field, Cause: c.about() + ": " + cause, Remedy: remedy,
	}}
}

// crowded is the Failure of a call that got no room to be sent.
func crowded(c call, err error) *lease.Failure {
	var f *lease.Failure
	if errors.Is(err, gate.ErrSlowed) {
		f = c.fail(lease.Retry, provider.Exhausted, "", fmt.Sprintf(
			"%d calls of namespace %s have had no answer for over %s", gate.NamespaceSlowed, c.by.Pod.Namespace, gate.SlowAfter),
			"look at the secrets engine or database behind this path")
	} else {
		f = c.fail(lease.Retry, provider.Deadline, "", "too many other calls were in flight for too long", "")
	}
	f.Problem.Err = err
	return f
}

// classify says what an answer that is no success means. Texts are Vault's of
// 1.21, matched loosely; where a text is not known the status decides, and in
// doubt the verdict is Retry, which never gives anything up.
func classify(c call, a answer) *lease.Failure {
	var f *lease.Failure
	switch {
	case a.err != nil:
		f = unanswered(c, a)
	case a.status == 400 && a.contentType == "" && strings.HasPrefix(c.to.addr, "http:"):
		// Go's answer, and so Vault's, to plain HTTP where TLS is spoken.
		f = c.fail(lease.Retry, provider.Precondition, "vaultAddress", "the server there speaks TLS", "begin the address with https://")
	case c.op == opLogin && (a.status == 400 || a.status == 403 || a.status == 404):
		f = refusedLogin(c, a)
	case a.status == 400:
		f = badRequest(c, a)
	case a.status == 403:
		f = forbidden(c, a)
	case a.status == 404:
		f = notFound(c, a)
	default:
		f = byStatus(c, a)
	}
	f.RetryAfter = a.retryAfter
	if c.op == opRead && !c.mints {
		f.MayHaveMinted = false // it is known to mint nothing
	}
	return f
}

// told is Vault's own text after a status, or the status alone.
func told(c call, a answer) string {
	if text := vaultSays(a, append(c.proof, c.token)...); text != "" {
		return fmt.Sprintf("Vault answers %d: %s", a.status, text)
	}
	return fmt.Sprintf("Vault answers %d %s", a.status, strings.ToLower(http.StatusText(a.status)))
}

// badRequest is a 400. On a renewal it is no proof that anything is gone: only
// the known texts are, and any other means that the engine behind had trouble.
func badRequest(c call, a answer) *lease.Failure {
	switch {
	case c.op == opRead:
		return c.fail(lease.Wrong, provider.Invalid, "secretPath", told(c, a), "correct secretPath or secretArgs")
	case a.says("not renewable"), a.says("batch tokens cannot be"):
		return c.fail(lease.Final, provider.Invalid, "", told(c, a), "")
	case a.says("lease not found"), a.says("invalid lease"), a.says("lease expired"), a.says("lease is expired"):
		return c.fail(lease.Gone, provider.Precondition, "", told(c, a), "")
	}
	return c.fail(lease.Retry, provider.Unavailable, "", told(c, a), "")
}

// forbidden is a 403 after the login: a dead token says so, any other lacks a
// line in a policy.
func forbidden(c call, a answer) *lease.Failure {
	if a.says("invalid token") {
		return buried(c)
	}
	capability := "update"
	switch c.method {
	case http.MethodGet:
		capability = "read"
	case provider.MethodList:
		capability = "list"
	}
	remedy := fmt.Sprintf("add path %q { capabilities = [%q] } to a policy of %s", c.path, capability, c.holder())
	if c.op != opRead {
		remedy += "; Vault's default policy has it, unless the role has token_no_default_policy"
	}
	field := ""
	if c.op == opRead {
		field = "secretPath"
	}
	return c.fail(lease.Refused, provider.Denied, field, told(c, a), bounded(remedy))
}

// buried is the Failure of a call under a dead token.
func buried(c call) *lease.Failure {
	return c.fail(lease.DeadAuth, provider.Precondition, "", "the token has expired or was revoked", "")
}

// notFound is a 404: nothing there, a deleted version, or no engine at all.
func notFound(c call, a answer) *lease.Failure {
	fail := func(cause, remedy string) *lease.Failure {
		return c.fail(lease.Wrong, provider.Invalid, "secretPath", cause, remedy)
	}
	if c.op != opRead {
		return c.fail(lease.Retry, provider.Unavailable, "", told(c, a), "")
	}
	if meta, ok := a.Data["metadata"].(map[string]any); ok {
		return deleted(c, meta)
	}
	warnings := strings.ToLower(strings.Join(a.Warnings, "\n"))
	mount, rest, _ := strings.Cut(c.path, "/")
	switch {
	case strings.Contains(warnings, "versioned k/v"):
		return fail("the path lacks the data/ of a KV version 2 mount",
			fmt.Sprintf("put data/ after the mount, like %q", bounded(mount+"/data/"+rest)))
	case a.says("no handler for route"):
		return fail("no secrets engine is mounted there", "correct secretPath or vaultNamespace")
	}
	return fail("nothing is there", "write the secret, or correct secretPath")
}

// deleted is the Failure for a version of a KV version 2 secret without data.
func deleted(c call, meta map[string]any) *lease.Failure {
	cause := "this version of the secret is deleted"
	if at, ok := meta["deletion_time"].(string); ok && at != "" {
		cause += " since " + bounded(at)
	}
	if destroyed, _ := meta["destroyed"].(bool); destroyed {
		cause = "this version of the secret is destroyed"
	}
	return c.fail(lease.Wrong, provider.Invalid, "secretPath", cause, "write a new version, or undelete this one")
}

// byStatus is what the status alone tells.
func byStatus(c call, a answer) *lease.Failure {
	retry := func(class provider.Class, cause, remedy string) *lease.Failure {
		return c.fail(lease.Retry, class, "", cause, remedy)
	}
	switch {
	case a.status < 400:
		return c.fail(lease.Wrong, provider.Invalid, "vaultAddress",
			fmt.Sprintf("the server answers %d, a redirect", a.status), "set vaultAddress to the address of Vault itself")
	case a.status == 405:
		return c.fail(lease.Wrong, provider.Invalid, "method",
			fmt.Sprintf("the path does not take %s", c.method), "set method to PUT for a path that issues, to GET for one that is read")
	case a.status == 412:
		return retry(provider.Unavailable, "this node of Vault lags behind the active one", "")
	case a.status == 429:
		return retry(provider.Exhausted, told(c, a), "raise the rate limit quota of Vault if this lasts")
	case a.status < 500 && a.status != 408 && !(a.status >= 472 && a.status <= 474):
		return c.fail(lease.Wrong, provider.Invalid, "", told(c, a), "")
	case a.status < 500:
		return retry(provider.Unavailable, fmt.Sprintf("this node of Vault is a standby that can't answer (%d)", a.status), "")
	case a.status == 501:
		return retry(provider.Unavailable, "Vault is not initialised", "")
	case a.status == 503 && a.says("sealed"):
		return retry(provider.Unavailable, "Vault is sealed or not initialised", "unseal Vault")
	case a.status == 503:
		return retry(provider.Unavailable, told(c, a), "")
	case a.says("local node not active"):
		return retry(provider.Unavailable, "Vault has no active node at the moment", "")
	}
	f := retry(provider.Unavailable, told(c, a), "")
	f.MayHaveMinted = true
	return f
}

// unanswered is a call without a usable answer. Once something was sent, it may
// have had its effect.
func unanswered(c call, a answer) *lease.Failure {
	v, class, field, cause, remedy := reason(a)
	f := c.fail(v, class, field, cause, remedy)
	f.Problem.Err = a.err
	var refused *redirectError
	f.MayHaveMinted = a.sent && !errors.As(a.err, &refused)
	return f
}

// reason puts an error of the transport, of TLS or of decoding into words. The
// errors' own texts may quote what a hostile server sent, and are not shown. TLS
// settings that do not fit are no passing fault: whoever waits is told at once,
// and only background work tries again.
func reason(a answer) (v lease.Verdict, class provider.Class, field, cause, remedy string) {
	var (
		expired   x509.CertificateInvalidError
		unknown   x509.UnknownAuthorityError
		host      x509.HostnameError
		alert     tls.AlertError
		record    tls.RecordHeaderError
		file      *tlsError
		redirect  *redirectError
		args      *argsError
		badJSON   *jsonError
		dns       *net.DNSError
		timeout   net.Error
		unusable  = provider.Unavailable
		operation *net.OpError
	)
	err := a.err
	switch {
	case errors.As(err, &args):
		return lease.Wrong, provider.Invalid, "secretArgs", "secretArgs can't be written as JSON", "use texts, numbers, booleans, lists and maps only"
	case errors.As(err, &file):
		return lease.Retry, provider.Precondition, file.field, bounded(file.Error()), "put a readable PEM file there"
	case errors.As(err, &redirect):
		return lease.Retry, unusable, "", "Vault answers with a " + redirect.Error(), "have the operator add it to --allowed-vault-addrs if it is a node of this Vault"
	case errors.Is(err, errLocalAddress):
		return lease.Wrong, provider.Denied, "vaultAddress", "the address is one of the node itself", "use an address of Vault; only the operator can allow a local one, with --vault-addr"
	case errors.As(err, &expired):
		if expired.Reason == x509.Expired && expired.Cert != nil {
			return lease.Retry, provider.Precondition, "", fmt.Sprintf("Vault's TLS certificate is valid from %s to %s only",
				expired.Cert.NotBefore.UTC().Format(time.RFC3339), expired.Cert.NotAfter.UTC().Format(time.RFC3339)), "renew Vault's certificate"
		}
		return lease.Retry, provider.Precondition, "", "Vault's TLS certificate is not valid for a server", "give Vault a server certificate"
	case errors.As(err, &unknown):
		return lease.Retry, provider.Precondition, "vaultCACertPath", "Vault's TLS certificate is signed by an unknown authority", "set vaultCACertPath to the CA that signed it"
	case errors.As(err, &host):
		return lease.Retry, provider.Precondition, "vaultTLSServerName", "Vault's TLS certificate is for another host name", "use a name of the certificate in vaultAddress, or set vaultTLSServerName to one"
	case errors.As(err, &alert):
		return lease.Retry, provider.Precondition, "vaultTLSClientCertPath", "Vault refuses the TLS connection (" + bounded(alert.Error()) + ")", "if Vault asks for client certificates, set vaultTLSClientCertPath and vaultTLSClientKeyPath"
	case errors.As(err, &record), errors.Is(err, http.ErrSchemeMismatch):
		return lease.Retry, provider.Precondition, "vaultAddress", "the server there does not speak TLS", "check scheme and port of vaultAddress"
	case errors.Is(err, errEmpty):
		return lease.Retry, unusable, "", "Vault's answer is empty", ""
	case errors.Is(err, errTooLarge):
		return lease.Wrong, provider.Exhausted, "secretPath", "Vault's answer is larger than 4 MiB", "make the secret smaller"
	case errors.As(err, &badJSON):
		return lease.Retry, unusable, "vaultAddress", "the answer is not the JSON of Vault (" + bounded(mediaType(a.contentType)) + ")", "check that vaultAddress is that of Vault"
	case errors.Is(err, context.Canceled):
		return lease.Retry, provider.Deadline, "", "nobody waits for it any more", ""
	case errors.As(err, &dns):
		return lease.Retry, unusable, "vaultAddress", "the host name can't be resolved", "check the host in vaultAddress and the node's DNS"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return lease.Retry, provider.Deadline, "", "Vault does not answer in time", ""
	case errors.Is(err, syscall.ECONNREFUSED):
		return lease.Retry, unusable, "", "the connection is refused", "check that Vault runs and listens there"
	case errors.As(err, &operation) && operation.Op == "dial":
		return lease.Retry, unusable, "", "no connection can be made", "check address, routes and network policies"
	case a.sent:
		return lease.Retry, unusable, "", "the connection broke before the answer was complete", ""
	}
	return lease.Retry, unusable, "", "the connection broke before the request was sent", ""
}

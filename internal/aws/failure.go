package aws

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"regexp"
	"strings"
	"syscall"

	"github.com/aws/smithy-go"

	"github.com/tenure-csi/tenure/internal/gate"
	"github.com/tenure-csi/tenure/internal/lease"
	"github.com/tenure-csi/tenure/provider"
)

// fail is the one place where a Failure of a call is made.
func (q question) fail(v lease.Verdict, class provider.Class, field, cause, remedy string) *lease.Failure {
	return &lease.Failure{Verdict: v, Problem: provider.Error{Class: class, Field: field, Cause: q.about() + ": " + cause, Remedy: remedy}}
}

// crowded is the Failure of a call that got no room to be sent.
func (q question) crowded(err error) *lease.Failure {
	class, cause := provider.Deadline, "too many other calls were in flight for too long"
	if errors.Is(err, gate.ErrSlowed) {
		class = provider.Exhausted
		cause = fmt.Sprintf("%d calls of namespace %s have had no answer for over %s", gate.NamespaceSlowed, q.by.Pod.Namespace, gate.SlowAfter)
	}
	f := q.fail(lease.Retry, class, "", cause, "")
	f.Problem.Err = err
	return f
}

// refusal is what a code of AWS's means. The first that fits counts.
type refusal struct {
	op      operation // the call that it was the answer to; empty: any
	code    string    // how the code begins
	text    string    // a part of code and message, in lower case; empty: any
	verdict lease.Verdict
	class   provider.Class
	field   string
	remedy  string
}

// refusals are STS's, from the lists of errors in its API reference, and what the
// agent passes on of EKS Auth's, in texts without a code.
var refusals = []refusal{
	{"", "Throttl", "", lease.Retry, provider.Exhausted, "", "spread pods over accounts, or ask AWS for a higher rate, if this lasts"},
	{"", "RequestLimitExceeded", "", lease.Retry, provider.Exhausted, "", ""},
	{opExchange, "ExpiredToken", "", lease.Wrong, provider.Precondition, "audience", "wait for kubelet to send a new token, and compare the clocks of this cluster and of AWS"},
	{opAssume, "ExpiredToken", "", lease.Retry, provider.Unavailable, "", "compare the clocks of this node and of AWS"},
	{"", "InvalidIdentityToken", "audience", lease.Refused, provider.Denied, "audience", "add {audience} to the audiences of the IAM identity provider for this cluster"},
	{"", "InvalidIdentityToken", "", lease.Refused, provider.Denied, "roleArn", "make an IAM identity provider for this cluster's issuer of tokens in the account of the role, with audience {audience}"},
	{"", "IDPRejectedClaim", "", lease.Refused, provider.Denied, "roleArn", "compare the pod's token with the IAM identity provider for this cluster"},
	{"", "IDPCommunicationError", "", lease.Retry, provider.Unavailable, "", "see that AWS reaches the keys of this cluster's issuer of tokens"},
	{"", "PackedPolicyTooLarge", "", lease.Wrong, provider.Invalid, "sessionPolicy", "shorten sessionPolicy or sessionTags until AWS packs them into 100%"},
	{"", "MalformedPolicyDocument", "", lease.Wrong, provider.Invalid, "sessionPolicy", "correct sessionPolicy"},
	{"", "RegionDisabled", "", lease.Wrong, provider.Precondition, "region", "activate STS for this region in the account, or name another region"},
	{"", "ValidationError", "role chaining", lease.Wrong, provider.Invalid, "ttl", "set ttl to at most 1h"},
	{"", "ValidationError", "durationseconds", lease.Wrong, provider.Invalid, "ttl", "set ttl to at most the role's maximum session duration, or raise that"},
	{"", "ValidationError", "", lease.Wrong, provider.Invalid, "", "correct roleArn, sessionPolicy or sessionTags"},
	{opExchange, "AccessDenied", "", lease.Refused, provider.Denied, "roleArn", "let the role's trust policy allow sts:AssumeRoleWithWebIdentity to system:serviceaccount:{namespace}:{account} with audience {audience}"},
	{opAssume, "AccessDenied", "tagsession", lease.Refused, provider.Denied, "sessionTags", "let the role's trust policy allow sts:TagSession beside sts:AssumeRole"},
	{opAssume, "AccessDenied", "", lease.Refused, provider.Denied, "roleArn", "allow sts:AssumeRole both in the role's trust policy and in a policy of the identity that assumes it"},
	{opAgent, "", "accessdenied", lease.Refused, provider.Denied, "identity", "associate an IAM role with service account {account} of namespace {namespace} in EKS Pod Identity"},
	{opAgent, "", "resourcenotfound", lease.Refused, provider.Denied, "identity", "associate an IAM role with service account {account} of namespace {namespace} in EKS Pod Identity"},
	{opAgent, "", "expiredtoken", lease.Wrong, provider.Precondition, "audience", "wait for kubelet to send a new token, and compare the clocks of this cluster and of AWS"},
	{opAgent, "", "invalidtoken", lease.Refused, provider.Denied, "audience", "check that this cluster is the one of the agent"},
	{"", "SignatureDoesNotMatch", "", lease.Retry, provider.Unavailable, "", "compare the clocks of this node and of AWS"},
	{"", "RequestExpired", "", lease.Retry, provider.Unavailable, "", "compare the clocks of this node and of AWS"},
}

// classify says what a failed call means. In doubt the verdict is Retry, which
// gives nothing up.
func (q question) classify(err error) *lease.Failure {
	var f *lease.Failure
	var told smithy.APIError
	switch {
	case q.op == opNode:
		f = q.fail(lease.Retry, provider.Unavailable, "identity", "there are none at the moment", "give the daemon's pod or the node an IAM role")
	case errors.As(err, &told):
		f = q.refused(told, statusOf(err))
	default:
		class, cause, remedy := reason(err)
		f = q.fail(lease.Retry, class, "", cause, remedy)
	}
	f.Problem.Err = err
	return f
}

// refused is an answer with an error of AWS's own.
func (q question) refused(told smithy.APIError, status int) *lease.Failure {
	text, says := q.words(told), strings.ToLower(told.ErrorCode()+" "+told.ErrorMessage())
	for _, r := range refusals {
		if (r.op == "" || r.op == q.op) && strings.HasPrefix(told.ErrorCode(), r.code) && strings.Contains(says, r.text) {
			return q.fail(r.verdict, r.class, r.field, text, q.fill(r.remedy))
		}
	}
	switch {
	case status >= 300 && status < 400:
		return q.fail(lease.Retry, provider.Unavailable, "", "the answer is a redirect, which is not followed", "check the address")
	case status == http.StatusTooManyRequests:
		return q.fail(lease.Retry, provider.Exhausted, "", text, "")
	case status >= 400 && status < 500 && q.op != opAgent:
		return q.fail(lease.Refused, provider.Denied, "roleArn", text, "check the role, its trust policy and who asks")
	}
	return q.fail(lease.Retry, provider.Unavailable, "", text, "")
}

// fill puts names into a remedy.
func (q question) fill(remedy string) string {
	return strings.NewReplacer("{namespace}", q.by.Pod.Namespace, "{account}", q.by.Pod.ServiceAccount, "{audience}", q.audience).Replace(remedy)
}

// keys are what AWS's texts may quote of credentials; encoded is a text of several
// KiB that only the account's owner can read.
var (
	keys    = regexp.MustCompile(`\beyJ[A-Za-z0-9_-]*\.[A-Za-z0-9_.-]+|\b(AKIA|ASIA)[A-Z0-9]{12,}`)
	encoded = regexp.MustCompile(`(?i)encoded authorization( failure)? message: \S+`)
)

// words is what a pod's author may read of AWS's answer: of one to the daemon's own
// identity, which names the daemon's role and account, the code.
func (q question) words(told smithy.APIError) string {
	if q.Identity == provider.NodeIdentity && told.ErrorCode() != "" {
		return "it answers " + provider.OneLine(told.ErrorCode()) + " (the rest is in the daemon's log)"
	}
	return q.answer(told)
}

// answer is AWS's code and message as one bounded line without secrets.
func (q question) answer(told smithy.APIError) string {
	const hidden = "[redacted]"
	text := told.ErrorMessage()
	if len(text) > 16<<10 {
		text = text[:16<<10]
	}
	if q.token != "" {
		text = strings.ReplaceAll(text, q.token.Reveal(), hidden)
	}
	text = encoded.ReplaceAllString(keys.ReplaceAllString(text, hidden), "")
	if told.ErrorCode() != "" {
		text = told.ErrorCode() + ": " + text
	}
	if text = provider.OneLine(text); text == "" {
		return "the answer is an error without a text"
	}
	return "it answers " + text
}

// reason puts a call without a usable answer into words. The errors' own texts may
// quote what was sent or answered, and are not shown.
func reason(err error) (class provider.Class, cause, remedy string) {
	var (
		certificate *tls.CertificateVerificationError
		record      tls.RecordHeaderError
		dns         *net.DNSError
		dial        *net.OpError
		timeout     net.Error
	)
	switch {
	case errors.Is(err, errNoSession):
		return provider.Unavailable, errNoSession.Error(), "have the operator check --aws-sts-endpoint and --aws-pod-identity-agent"
	case errors.As(err, &certificate):
		return provider.Unavailable, "its TLS certificate can't be verified", "check the address and the CAs in the daemon's image"
	case errors.As(err, &record), errors.Is(err, http.ErrSchemeMismatch):
		return provider.Unavailable, "the server there does not speak TLS", "check the address"
	case errors.As(err, &dns):
		return provider.Unavailable, "its host name can't be resolved", "check region and the node's DNS"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return provider.Deadline, "there is no answer in time", "check routes, network policies and VPC endpoints"
	case errors.Is(err, context.Canceled):
		return provider.Deadline, "nobody waits for it any more", ""
	case errors.Is(err, syscall.ECONNREFUSED):
		return provider.Unavailable, "the connection is refused", "see that it runs and listens there"
	case errors.As(err, &dial) && dial.Op == "dial":
		return provider.Unavailable, "no connection can be made", "check routes and network policies"
	}
	return provider.Unavailable, "there is no answer that can be read", "check the address"
}

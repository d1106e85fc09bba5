// Package aws speaks to AWS.
package aws

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/tenure-csi/tenure/provider"
)

// globalSTS is STS's first endpoint, which signs for globalRegion. It is where
// Vault's aws auth method sends requests unless it is told otherwise.
const (
	globalSTS    = "https://sts.amazonaws.com"
	globalRegion = "us-east-1"
)

// callerIdentity is the form of the one request that is signed here.
const callerIdentity = "Action=GetCallerIdentity&Version=2011-06-15"

// exchangeTTL is the shortest life that STS gives a session, in seconds: it signs
// one request.
const exchangeTTL = 900

// Signer signs sts:GetCallerIdentity, by which others learn from AWS who signed.
// Its fields must not be changed after the first use; its method may be called
// from many goroutines at once.
type Signer struct {
	Region   string                  // empty: STS's global endpoint, which is of us-east-1
	Endpoint string                  // URL of STS; empty: AWS's own of the region
	Node     aws.CredentialsProvider // the daemon's own credentials; nil: it has none
	HTTP     *http.Client            // for calls to STS; nil: the SDK's own
}

// SignCallerIdentity answers a POST of GetCallerIdentity with headers beside its
// own, all signed, which AWS takes for some minutes from now on; its GetBody is
// set. With a token it asks STS for a session of login.AWSRoleARN and signs with
// that, without one it signs with the daemon's own credentials. Errors are
// *provider.Error; they hold STS's code and text, and nothing secret.
func (s *Signer) SignCallerIdentity(ctx context.Context, pod provider.Pod, login provider.Login, token provider.Secret, headers http.Header) (*http.Request, error) {
	endpoint, region, err := s.endpoint(ctx)
	if err != nil {
		return nil, &provider.Error{
			Class: provider.Precondition, Cause: fmt.Sprintf("STS has no endpoint in region %q", s.Region), Remedy: "have the operator correct --aws-region", Err: err,
		}
	}
	credentials, err := s.credentials(ctx, pod, login, token, endpoint, region)
	if err != nil {
		return nil, err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, endpoint, strings.NewReader(callerIdentity))
	if err != nil {
		return nil, &provider.Error{Cause: "the request to STS can't be made", Err: err}
	}
	maps.Copy(r.Header, headers)
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded; charset=utf-8")
	sum := sha256.Sum256([]byte(callerIdentity))
	if err := v4.NewSigner().SignHTTP(ctx, credentials, r, hex.EncodeToString(sum[:]), "sts", region, time.Now()); err != nil {
		return nil, &provider.Error{Cause: "the request to STS can't be signed", Err: err}
	}
	return r, nil
}

// endpoint is where STS is, with a path, and the region that it signs for.
func (s *Signer) endpoint(ctx context.Context) (url, region string, err error) {
	switch {
	case s.Endpoint != "":
		return strings.TrimSuffix(s.Endpoint, "/") + "/", cmp.Or(s.Region, globalRegion), nil
	case s.Region == "":
		return globalSTS + "/", globalRegion, nil
	}
	e, err := sts.NewDefaultEndpointResolverV2().ResolveEndpoint(ctx, sts.EndpointParameters{Region: &s.Region})
	if err != nil {
		return "", "", err
	}
	return strings.TrimSuffix(e.URI.String(), "/") + "/", s.Region, nil
}

// credentials are those that sign.
func (s *Signer) credentials(ctx context.Context, pod provider.Pod, login provider.Login, token provider.Secret, endpoint, region string) (aws.Credentials, error) {
	if token == "" {
		return s.node(ctx)
	}
	o := sts.Options{Region: region, BaseEndpoint: &endpoint, Retryer: aws.NopRetryer{}} // whoever waits for the login tries again
	if s.HTTP != nil {
		o.HTTPClient = s.HTTP
	}
	answer, err := sts.New(o).AssumeRoleWithWebIdentity(ctx, &sts.AssumeRoleWithWebIdentityInput{
		RoleArn: &login.AWSRoleARN, WebIdentityToken: aws.String(token.Reveal()),
		RoleSessionName: aws.String(loginSession(pod)), DurationSeconds: aws.Int32(exchangeTTL),
	})
	if err != nil {
		return aws.Credentials{}, exchangeError(err, pod, login, token)
	}
	c := answer.Credentials
	if c == nil || c.AccessKeyId == nil || c.SecretAccessKey == nil || c.SessionToken == nil {
		return aws.Credentials{}, &provider.Error{Class: provider.Unavailable, Cause: "the answer of STS holds no session", Remedy: "check --aws-sts-endpoint"}
	}
	return aws.Credentials{AccessKeyID: *c.AccessKeyId, SecretAccessKey: *c.SecretAccessKey, SessionToken: *c.SessionToken}, nil
}

func (s *Signer) node(ctx context.Context) (aws.Credentials, error) {
	if s.Node == nil {
		return aws.Credentials{}, &provider.Error{
			Class: provider.Precondition, Field: "awsIdentity", Cause: "the daemon has no identity at AWS", Remedy: "use awsIdentity: pod",
		}
	}
	c, err := s.Node.Retrieve(ctx)
	if err != nil {
		return c, &provider.Error{
			Class: provider.Unavailable, Field: "awsIdentity", Cause: "the daemon has no credentials of AWS at the moment",
			Remedy: "give its pod or the node an IAM role", Err: err,
		}
	}
	return c, nil
}

// loginSession names the session in CloudTrail: of letters that STS takes, since
// Kubernetes' names have no others, and at most 64 of them.
func loginSession(pod provider.Pod) string {
	name := pod.Namespace + "." + pod.ServiceAccount
	if len(name) <= 64 {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	return name[:64-13] + "-" + hex.EncodeToString(sum[:6])
}

// exchangeError says what STS's refusal of a pod's token means.
func exchangeError(err error, pod provider.Pod, login provider.Login, token provider.Secret) error {
	out := &provider.Error{Class: provider.Unavailable, Err: err}
	about := "exchanging the pod's token for a session of " + login.AWSRoleARN + " at STS: "
	var told smithy.APIError
	if !errors.As(err, &told) {
		out.Cause = about + "no answer"
		if errors.Is(err, context.DeadlineExceeded) {
			out.Class, out.Cause = provider.Deadline, about+"no answer in time"
		}
		out.Remedy = "check the way from the node to STS and the operator's --aws-region and --aws-sts-endpoint"
		return out
	}
	out.Cause = about + oneLine(told.ErrorCode()+": "+told.ErrorMessage(), token)
	switch told.ErrorCode() {
	case "ExpiredTokenException":
		out.Class, out.Remedy = provider.Precondition, "wait for kubelet to send a new token, and compare the clocks of the cluster and of AWS"
	case "InvalidIdentityToken":
		out.Class, out.Remedy = provider.Precondition, fmt.Sprintf(
			"give the account an IAM OIDC provider for this cluster's issuer, with audience %s", login.Audience)
	case "AccessDenied":
		out.Class, out.Field = provider.Denied, "vaultAwsRoleArn"
		out.Remedy = fmt.Sprintf("let the role's trust policy allow sts:AssumeRoleWithWebIdentity to system:serviceaccount:%s:%s", pod.Namespace, pod.ServiceAccount)
	case "Throttling", "ThrottlingException", "RequestLimitExceeded":
		out.Class = provider.Exhausted
	case "IDPCommunicationError":
		out.Remedy = "see that AWS reaches the issuer's keys"
	default:
		if answer := (*smithyhttp.ResponseError)(nil); !errors.As(err, &answer) || answer.HTTPStatusCode() < 500 {
			out.Class, out.Field, out.Remedy = provider.Denied, "vaultAwsRoleArn", "check the role and its trust policy"
		}
	}
	return out
}

// oneLine makes STS's text safe to print: bounded, printable, without the token.
func oneLine(text string, token provider.Secret) string {
	const most = 256
	text = strings.ReplaceAll(text, token.Reveal(), "[redacted]")
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return ' '
		}
		return r
	}, text)
	return text[:min(len(text), most)]
}

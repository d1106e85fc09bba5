package aws

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"math"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials/endpointcreds"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/aws-sdk-go-v2/service/sts/types"

	"github.com/tenure-csi/tenure/internal/lease"
	"github.com/tenure-csi/tenure/provider"
)

// operation is what a call does, for metrics, logs and error texts.
type operation string

const (
	opExchange operation = "assume_role_with_web_identity"
	opAssume   operation = "assume_role"
	opAgent    operation = "pod_identity_agent"
	opNode     operation = "node_credentials"
)

// question is a read as it is put to AWS.
type question struct {
	provider.AWS // with the region in use
	by           lease.Caller
	op           operation       // the call under way
	token        provider.Secret // the pod's; empty with NodeIdentity
	audience     string          // of the token
	life         time.Duration   // to ask for
}

// session gets the keys that a question asks for, in one call or in two.
func (s *Source) session(ctx context.Context, q question) (aws.Credentials, *lease.Failure) {
	if f := s.check(q); f != nil {
		return aws.Credentials{}, f
	}
	if q.Identity == provider.PodIdentity {
		q.op = opExchange
		return s.exchange(ctx, q)
	}
	q.op = opAgent
	first := s.agent(q.token)
	if q.Identity == provider.NodeIdentity {
		q.op, first = opNode, s.cfg.Node
	}
	keys, f := s.ask(ctx, q, first.Retrieve)
	if f != nil || q.RoleARN == "" {
		return keys, f
	}
	q.op = opAssume
	return s.assume(ctx, q, keys)
}

// check refuses what must not be asked, or can't be. A role beside the node's
// identity comes from the cluster's operator alone: no SPC can name one.
func (s *Source) check(q question) *lease.Failure {
	q.op = opExchange
	cause, remedy := provider.RoleFault(q.RoleARN, q.Region)
	switch {
	case q.Identity == provider.NodeIdentity && (s.cfg.Node == nil || q.RoleARN == ""):
		return notLent()
	case q.RoleARN == "" && q.Identity == provider.AgentIdentity:
	case q.Region == "":
		return q.noRegion()
	case cause != "":
		return q.fail(lease.Wrong, provider.Invalid, "roleArn", "roleArn "+cause, remedy)
	}
	return nil
}

func (q question) noRegion() *lease.Failure {
	return q.fail(lease.Wrong, provider.Invalid, "region", "no region is named, and the daemon has none", "set region, or have the operator set --aws-region")
}

// exchange gives the pod's token for a session.
func (s *Source) exchange(ctx context.Context, q question) (aws.Credentials, *lease.Failure) {
	return s.ask(ctx, q, func(ctx context.Context) (aws.Credentials, error) {
		out, err := s.sts(q.Region, aws.Credentials{}).AssumeRoleWithWebIdentity(ctx, &sts.AssumeRoleWithWebIdentityInput{
			RoleArn: &q.RoleARN, RoleSessionName: aws.String(sessionName(s.cfg.Cluster, q.by.Pod)),
			WebIdentityToken: aws.String(q.token.Reveal()), DurationSeconds: seconds(q.life), Policy: optional(q.SessionPolicy),
		})
		if err != nil {
			return aws.Credentials{}, err
		}
		s.noteFull(ctx, q, out.SessionTokenUtilization)
		return keysOf(out.Credentials)
	})
}

// assume gives one session for another.
func (s *Source) assume(ctx context.Context, q question, by aws.Credentials) (aws.Credentials, *lease.Failure) {
	var tags []types.Tag
	for key, value := range q.SessionTags {
		tags = append(tags, types.Tag{Key: aws.String(key), Value: aws.String(value)})
	}
	return s.ask(ctx, q, func(ctx context.Context) (aws.Credentials, error) {
		out, err := s.sts(q.Region, by).AssumeRole(ctx, &sts.AssumeRoleInput{
			RoleArn: &q.RoleARN, RoleSessionName: aws.String(sessionName(s.cfg.Cluster, q.by.Pod)),
			DurationSeconds: seconds(q.life), Policy: optional(q.SessionPolicy), Tags: tags,
		})
		if err != nil {
			return aws.Credentials{}, err
		}
		s.noteFull(ctx, q, out.SessionTokenUtilization)
		return keysOf(out.Credentials)
	})
}

// noteFull warns before policy and tags no longer fit into a session's token, as
// the names in them differ from pod to pod.
func (s *Source) noteFull(ctx context.Context, q question, percent *int32) {
	const most = 90
	if percent != nil && *percent >= most {
		s.log.LogAttrs(ctx, slog.LevelWarn, "session policy and tags nearly fill what AWS takes",
			slog.String("role", q.RoleARN), slog.String("namespace", q.by.Pod.Namespace), slog.String("pod", q.by.Pod.Name), slog.Int("percent", int(*percent)))
	}
}

// sts makes a client. It never tries again by itself: the lease policy does.
func (s *Source) sts(region string, by aws.Credentials) *sts.Client {
	o := sts.Options{
		Region: region, BaseEndpoint: optional(s.cfg.STSEndpoint), HTTPClient: s.http, Retryer: aws.NopRetryer{},
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) { return by, nil }),
	}
	if s.cfg.FIPS {
		o.EndpointOptions.UseFIPSEndpoint = aws.FIPSEndpointStateEnabled
	}
	return sts.New(o)
}

// agent asks EKS Pod Identity's agent with a pod's token.
func (s *Source) agent(token provider.Secret) aws.CredentialsProvider {
	return endpointcreds.New(s.cfg.Agent, func(o *endpointcreds.Options) {
		o.AuthorizationToken, o.HTTPClient, o.Retryer = token.Reveal(), s.http, aws.NopRetryer{}
	})
}

// keysOf refuses an answer that is no session.
func keysOf(c *types.Credentials) (aws.Credentials, error) {
	if c == nil || c.Expiration == nil || aws.ToString(c.AccessKeyId) == "" || aws.ToString(c.SecretAccessKey) == "" || aws.ToString(c.SessionToken) == "" {
		return aws.Credentials{}, errNoSession
	}
	return aws.Credentials{
		AccessKeyID: *c.AccessKeyId, SecretAccessKey: *c.SecretAccessKey, SessionToken: *c.SessionToken, CanExpire: true, Expires: *c.Expiration,
	}, nil
}

// sessionName is how a session shows in CloudTrail and in trust policies:
// namespace.account@cluster. Kubernetes' names have no other characters than STS
// takes; of the 64 that it takes a hash ends what is cut.
func sessionName(cluster string, pod provider.Pod) string {
	const most, sumLength = 64, 16
	name := pod.Namespace + "." + pod.ServiceAccount
	if cluster != "" {
		name += "@" + cluster
	}
	if len(name) <= most {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	return name[:most-1-sumLength] + "-" + hex.EncodeToString(sum[:])[:sumLength]
}

func seconds(d time.Duration) *int32 {
	return aws.Int32(int32(min(d/time.Second, math.MaxInt32)))
}

// optional is text as the SDK has it where it may be left out.
func optional(text string) *string {
	if text == "" {
		return nil
	}
	return &text
}

// about says what a call was for, as the begin of an error text.
func (q question) about() string {
	switch q.op {
	case opAgent:
		return "asking the EKS Pod Identity agent for the pod's session"
	case opNode:
		return "finding the daemon's own credentials at AWS"
	}
	return "asking STS in " + cmp.Or(q.Region, "no region") + " for a session of " + q.RoleARN
}

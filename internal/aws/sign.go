package aws

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"net/http"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/tenure-csi/tenure/internal/lease"
	"github.com/tenure-csi/tenure/provider"
)

// callerIdentity is the form of the one request that is signed for others.
const callerIdentity = "Action=GetCallerIdentity&Version=2011-06-15"

// SignCallerIdentity answers a POST of sts:GetCallerIdentity with headers beside
// its own, all signed, by which whoever sends it on learns from AWS who signed; its
// GetBody is set. AWS takes it for some minutes from now on. With a token it asks
// STS for a session of login.AWSRoleARN and signs with that, without one with the
// daemon's own credentials. Every error is a *lease.Failure that blames the fields
// of a login.
func (s *Source) SignCallerIdentity(ctx context.Context, by lease.Caller, login provider.Login, token provider.Secret, headers http.Header) (*http.Request, error) {
	q := question{
		AWS: provider.AWS{Identity: login.AWSIdentity, RoleARN: login.AWSRoleARN, Region: s.cfg.Region},
		by:  by, op: opExchange, token: token, life: shortestLife, audience: login.Audience,
	}
	if q.Region == "" {
		return nil, q.fail(lease.Wrong, provider.Precondition, "", "the daemon knows no AWS region", "have the operator set --aws-region")
	}
	keys, f := s.signingKeys(ctx, q)
	if f != nil {
		f.Problem.Field = map[string]string{"roleArn": "vaultAwsRoleArn", "identity": "awsIdentity", "audience": "audience"}[f.Problem.Field]
		return nil, f
	}
	r, err := s.signed(ctx, keys, headers)
	if err != nil {
		f = q.fail(lease.Wrong, provider.Internal, "", "no request can be signed for STS", "have the operator check --aws-region and --aws-sts-endpoint")
		f.Problem.Err = err
		return nil, f
	}
	return r, nil
}

// signingKeys are the pod's session, or the daemon's own credentials as they are.
func (s *Source) signingKeys(ctx context.Context, q question) (aws.Credentials, *lease.Failure) {
	switch {
	case q.token != "":
		return s.session(ctx, q)
	case s.cfg.Node == nil:
		return aws.Credentials{}, notLent()
	}
	q.op = opNode
	return s.ask(ctx, q, s.cfg.Node.Retrieve)
}

// signed makes the request.
func (s *Source) signed(ctx context.Context, keys aws.Credentials, headers http.Header) (*http.Request, error) {
	endpoint, err := sts.NewDefaultEndpointResolverV2().ResolveEndpoint(ctx, sts.EndpointParameters{
		Region: &s.cfg.Region, UseFIPS: aws.Bool(s.cfg.FIPS), Endpoint: optional(s.cfg.STSEndpoint),
	})
	if err != nil {
		return nil, err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(endpoint.URI.String(), "/")+"/", strings.NewReader(callerIdentity))
	if err != nil {
		return nil, err
	}
	maps.Copy(r.Header, headers)
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded; charset=utf-8")
	sum := sha256.Sum256([]byte(callerIdentity))
	return r, v4.NewSigner().SignHTTP(ctx, keys, r, hex.EncodeToString(sum[:]), "sts", s.cfg.Region, time.Now())
}

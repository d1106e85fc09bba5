// Package aws is the lease.Source for AWS without Vault: sessions of STS, and
// tokens for the databases of RDS. It keeps nothing of a pod between two calls.
package aws

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/feature/rds/auth"

	"github.com/tenure-csi/tenure/internal/format"
	"github.com/tenure-csi/tenure/internal/lease"
	"github.com/tenure-csi/tenure/provider"
)

const (
	// defaultLife is the life of a session that an SPC asks no other for: every
	// role allows it.
	defaultLife = time.Hour
	// tokenLife is how long an RDS token opens connections, and shortestLife what
	// STS gives at least: one session for one token.
	tokenLife    = 15 * time.Minute
	shortestLife = 15 * time.Minute
)

// Login implements lease.Source. It makes no call: it checks that the proof which
// each read gives is there, and answers a Session without a token. An empty
// Audience means the daemon's own identity, which no pod has without being told.
func (s *Source) Login(_ context.Context, by lease.Caller, login provider.Login, id provider.Identity) (lease.Session, error) {
	if login.Audience == "" {
		if s.cfg.Node == nil {
			return lease.Session{}, notLent()
		}
		return lease.Session{Login: login}, nil
	}
	if _, f := tokenOf(login, id, by.Pod); f != nil {
		return lease.Session{}, f
	}
	return lease.Session{Login: login}, nil
}

// Read implements lease.Source with the identity in the Session. A session whose
// answer was lost is one that nobody knows, and no trouble to anybody: a read ends
// with ctx, and may be sent again at once.
func (s *Source) Read(ctx context.Context, by lease.Caller, se lease.Session, r provider.Read) (lease.Issued, error) {
	q := question{by: by, AWS: r.AWS, life: r.AWS.TTL, audience: r.Login.Audience}
	if q.Region == "" {
		q.Region = s.cfg.Region
	}
	if q.life == 0 {
		q.life = defaultLife
	}
	isDatabase := r.AWS.Endpoint != ""
	if isDatabase {
		q.life = shortestLife
	}
	if q.Identity != provider.NodeIdentity {
		var f *lease.Failure
		if q.token, f = tokenOf(r.Login, se.Identity, by.Pod); f != nil {
			return lease.Issued{}, f
		}
	}
	keys, f := s.session(ctx, q)
	if f != nil {
		return lease.Issued{}, f
	}
	now := time.Now()
	if isDatabase {
		return database(ctx, q, keys, now)
	}
	return lease.Issued{
		Secret: format.Secret{Data: sessionData(keys), Expires: keys.Expires},
		TTL:    keys.Expires.Sub(now), Kind: lease.Leased, Headroom: lease.SessionHeadroom,
	}, nil
}

// sessionData has the names that Vault's AWS engine gives, so that formats and
// templates work with either.
func sessionData(keys aws.Credentials) map[string]any {
	return map[string]any{"access_key": keys.AccessKeyID, "secret_key": keys.SecretAccessKey, "session_token": keys.SessionToken}
}

// database makes a token for a database of RDS: a signed request that is never
// sent. It opens connections for 15 minutes, and not longer than its session lives.
func database(ctx context.Context, q question, keys aws.Credentials, now time.Time) (lease.Issued, error) {
	if q.Region == "" {
		return lease.Issued{}, q.noRegion()
	}
	signer := aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) { return keys, nil })
	token, err := auth.BuildAuthToken(ctx, q.Endpoint, q.Region, q.User, signer)
	host, port, splitErr := net.SplitHostPort(q.Endpoint)
	if err = errors.Join(err, splitErr); err != nil {
		f := q.fail(lease.Wrong, provider.Invalid, "connection.host", "no token can be made for this endpoint", "correct connection")
		f.Problem.Err = err
		return lease.Issued{}, f
	}
	end := now.Add(tokenLife)
	if keys.Expires.Before(end) {
		end = keys.Expires
	}
	return lease.Issued{
		Secret: format.Secret{
			Data:    map[string]any{"username": q.User, "password": token, "host": host, "port": json.Number(port)},
			Expires: end,
		},
		TTL: end.Sub(now), Kind: lease.Leased,
	}, nil
}

// tokenOf is the pod's token that a login names.
func tokenOf(login provider.Login, id provider.Identity, pod provider.Pod) (provider.Secret, *lease.Failure) {
	token, err := id.TokenFor(login.Audience, pod)
	if known, ok := errors.AsType[*provider.Error](err); ok {
		return "", &lease.Failure{Verdict: lease.Wrong, Problem: *known}
	}
	return token.Value, nil
}

// notLent refuses the daemon's own identity.
func notLent() *lease.Failure {
	return &lease.Failure{Verdict: lease.Refused, Problem: provider.Error{
		Class: provider.Denied, Field: "identity", Cause: "the cluster's operator lets nobody here use the node's identity",
		Remedy: "use identity: " + provider.PodIdentity + ", or ask the operator for a tenant binding",
	}}
}

// RenewSession implements lease.Source: it is never called, there is no token.
func (s *Source) RenewSession(context.Context, lease.Caller, lease.Session) (lease.Granted, error) {
	return lease.Granted{}, unrenewable()
}

// RenewLease implements lease.Source: AWS renews nothing.
func (s *Source) RenewLease(context.Context, lease.Caller, lease.Session, string, time.Duration) (lease.Granted, error) {
	return lease.Granted{}, unrenewable()
}

func unrenewable() error {
	return &lease.Failure{Verdict: lease.Final, Problem: provider.Error{Class: provider.Invalid, Cause: "sessions of AWS can't be renewed"}}
}

// EndSession implements lease.Source: AWS ends nothing early.
func (s *Source) EndSession(context.Context, lease.Caller, lease.Session) error { return nil }

// EndLease implements lease.Source: AWS ends nothing early.
func (s *Source) EndLease(context.Context, lease.Caller, lease.Session, string) error { return nil }

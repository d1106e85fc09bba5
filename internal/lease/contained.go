package lease

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"github.com/tenure-csi/tenure/provider"
)

// contained is a Source whose panics become Failures of the call that they
// happened in. Sources are called from goroutines of their own, where a panic
// would end the daemon for every volume.
type contained struct {
	Source
	m *Manager
}

// contain is deferred by each method.
func (c contained) contain(by Caller, minting bool, err *error) {
	p := recover()
	if p == nil {
		return
	}
	var e *provider.Error
	errors.As(c.m.panicked(c.m.Log.With("namespace", by.Pod.Namespace, "pod", by.Pod.Name), p), &e)
	*err = &Failure{Problem: *e, MayHaveMinted: minting}
}

// Login implements Source.
func (c contained) Login(ctx context.Context, by Caller, login provider.Login, id provider.Identity) (s Session, err error) {
	defer c.contain(by, false, &err)
	return c.Source.Login(ctx, by, login, id)
}

// Read implements Source: the answer that a panic kept back may have made something.
func (c contained) Read(ctx context.Context, by Caller, s Session, r provider.Read) (i Issued, err error) {
	defer c.contain(by, true, &err)
	return c.Source.Read(ctx, by, s, r)
}

// RenewSession implements Source.
func (c contained) RenewSession(ctx context.Context, by Caller, s Session) (g Granted, err error) {
	defer c.contain(by, false, &err)
	return c.Source.RenewSession(ctx, by, s)
}

// RenewLease implements Source.
func (c contained) RenewLease(ctx context.Context, by Caller, s Session, id string, increment time.Duration) (g Granted, err error) {
	defer c.contain(by, false, &err)
	return c.Source.RenewLease(ctx, by, s, id, increment)
}

// EndSession implements Source.
func (c contained) EndSession(ctx context.Context, by Caller, s Session) (err error) {
	defer c.contain(by, false, &err)
	return c.Source.EndSession(ctx, by, s)
}

// EndLease implements Source.
func (c contained) EndLease(ctx context.Context, by Caller, s Session, id string) (err error) {
	defer c.contain(by, false, &err)
	return c.Source.EndLease(ctx, by, s, id)
}

// panicked reports a recovered panic as an error. The panic's own value is not
// shown, it may hold a secret; the stack has none.
func (m *Manager) panicked(log *slog.Logger, p any) error {
	m.metrics.panics.Inc()
	log.Error("recovered from a panic", "type", fmt.Sprintf("%T", p), "stack", string(debug.Stack()))
	return &provider.Error{Class: provider.Internal, Cause: "a fault in Tenure itself", Remedy: "report it with the daemon's log; other volumes are not affected"}
}

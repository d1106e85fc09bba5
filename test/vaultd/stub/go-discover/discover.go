// Package discover stands in for github.com/hashicorp/go-discover, by which Vault's raft storage finds its peers
// through a cloud's API ("auto_join"). The original compiles fifteen cloud SDKs: half of Vault's whole build time.
// vaultd has no raft storage, so nothing here is ever reached; if it were, it says so.
package discover

import (
	"errors"
	"log"
)

var errStub = errors.New("raft auto_join is not part of this build")

type (
	// Config is a parsed auto_join setting.
	Config map[string]string
	// Provider is one cloud.
	Provider interface{}
	// Discover looks peers up.
	Discover struct{}
	// Option configures a Discover.
	Option func(*Discover) error
)

// Providers is empty: no cloud is supported.
var Providers map[string]Provider

// New succeeds, as Vault's core makes a Discover before it knows whether it needs one.
func New(...Option) (*Discover, error) { return &Discover{}, nil }

// WithProviders does nothing.
func WithProviders(map[string]Provider) Option { return nil }

// Addrs fails.
func (*Discover) Addrs(string, *log.Logger) ([]string, error) { return nil, errStub }

// Parse fails.
func Parse(string) (Config, error) { return nil, errStub }

// String is never called, as Parse makes no Config.
func (Config) String() string { return "" }

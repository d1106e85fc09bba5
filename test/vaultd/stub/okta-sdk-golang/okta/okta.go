// Package okta stands in for github.com/okta/okta-sdk-golang/v5/okta, which Vault's core uses for one thing: Okta as
// the second factor of a login. The original is 1051 files, a tenth of Vault's whole build time. Here the first call of
// such a login fails; what follows it exists only so that Vault compiles.
package okta

import (
	"context"
	"errors"
)

var errStub = errors.New("the second factor Okta is not part of this build")

type (
	Configuration struct{ Context context.Context }
	ConfigSetter  func(*Configuration)
	APIClient     struct {
		UserAPI       userAPI
		UserFactorAPI userFactorAPI
	}
	User           struct{}
	UserFactorPush struct{}
	Factor         struct{ UserFactorPush *UserFactorPush }
	VerifyResponse struct{ Links map[string]any }
	Transaction    struct {
		UserFactorPushTransaction         *struct{}
		UserFactorPushTransactionWaiting  *struct{}
		UserFactorPushTransactionRejected *struct{}
		UserFactorPushTransactionTimeout  *struct{}
	}

	userAPI       struct{}
	userFactorAPI struct{}
	listUsers     struct{}
	call[T any]   struct{}
)

func NewConfiguration(...ConfigSetter) (*Configuration, error) { return nil, errStub }
func NewAPIClient(*Configuration) *APIClient                   { return nil }
func WithToken(string) ConfigSetter                            { return nil }
func WithOrgUrl(string) ConfigSetter                           { return nil }
func WithCache(bool) ConfigSetter                              { return nil }

func (*APIClient) GetConfig() *Configuration        { return nil }
func (*User) GetId() string                         { return "" }
func (*UserFactorPush) GetId() string               { return "" }
func (*VerifyResponse) GetFactorResult() string     { return "" }
func (userAPI) ListUsers(context.Context) listUsers { return listUsers{} }
func (listUsers) Filter(string) call[[]User]        { return call[[]User]{} }

func (userFactorAPI) ListFactors(context.Context, string) call[[]Factor] { return call[[]Factor]{} }

func (userFactorAPI) VerifyFactor(context.Context, string, string) call[*VerifyResponse] {
	return call[*VerifyResponse]{}
}

func (userFactorAPI) GetFactorTransactionStatus(context.Context, string, string, string) call[*Transaction] {
	return call[*Transaction]{}
}

func (call[T]) Execute() (T, any, error) {
	var none T
	return none, nil, errStub
}

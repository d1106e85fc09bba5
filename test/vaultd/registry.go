package main

import (
	jwtauth "github.com/hashicorp/vault-plugin-auth-jwt"
	kubeauth "github.com/hashicorp/vault-plugin-auth-kubernetes"
	"github.com/hashicorp/vault/builtin/credential/approle"
	awsauth "github.com/hashicorp/vault/builtin/credential/aws"
	"github.com/hashicorp/vault/builtin/logical/aws"
	"github.com/hashicorp/vault/builtin/logical/pki"
	"github.com/hashicorp/vault/plugins/database/mysql"
	"github.com/hashicorp/vault/plugins/database/postgresql"
	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"
)

// engines is what this Vault can mount, besides token, cubbyhole, identity and sys (part of the core) and kv and
// database (named in run, as `vault server` does). Adding an engine is one line here.
var engines = registry{
	{consts.PluginTypeCredential, "approle", backend(approle.Factory)},
	{consts.PluginTypeCredential, "aws", backend(awsauth.Factory)},
	{consts.PluginTypeCredential, "jwt", backend(jwtauth.Factory)},
	{consts.PluginTypeCredential, "kubernetes", backend(kubeauth.Factory)},
	{consts.PluginTypeSecrets, "aws", backend(aws.Factory)},
	{consts.PluginTypeSecrets, "pki", backend(pki.Factory)},
	{consts.PluginTypeDatabase, "mysql-database-plugin", mysql.New(mysql.DefaultUserNameTemplate)},
	{consts.PluginTypeDatabase, "postgresql-database-plugin", postgresql.New},
}

// registry is Vault's plugincatalog.BuiltinRegistry. Vault's own (helper/builtinplugins) compiles every engine there is.
type registry []struct {
	kind    consts.PluginType
	name    string
	factory func() (any, error)
}

// backend wraps an engine's factory: the catalog calls it to get at the factory, which it finds by this exact type.
func backend(f logical.Factory) func() (any, error) {
	return func() (any, error) { return f, nil }
}

func (r registry) Get(name string, kind consts.PluginType) (func() (any, error), bool) {
	for _, e := range r {
		if e.name == name && e.kind == kind {
			return e.factory, true
		}
	}
	return nil, false
}

func (r registry) Contains(name string, kind consts.PluginType) bool {
	_, ok := r.Get(name, kind)
	return ok
}

func (r registry) Keys(kind consts.PluginType) []string {
	var names []string
	for _, e := range r {
		if e.kind == kind {
			names = append(names, e.name)
		}
	}
	return names
}

func (r registry) DeprecationStatus(name string, kind consts.PluginType) (consts.DeprecationStatus, bool) {
	if r.Contains(name, kind) {
		return consts.Supported, true
	}
	return consts.Unknown, false
}

func (registry) IsBuiltinEntPlugin(string, consts.PluginType) bool { return false }

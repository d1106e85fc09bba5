package main

import (
	_ "github.com/hashicorp/vault-plugin-auth-jwt"
	_ "github.com/hashicorp/vault-plugin-auth-kubernetes"
	_ "github.com/hashicorp/vault-plugin-secrets-kv"
	_ "github.com/hashicorp/vault/audit"
	_ "github.com/hashicorp/vault/builtin/credential/approle"
	_ "github.com/hashicorp/vault/builtin/logical/database"
	_ "github.com/hashicorp/vault/builtin/logical/pki"
	_ "github.com/hashicorp/vault/http"
	_ "github.com/hashicorp/vault/plugins/database/postgresql"
	_ "github.com/hashicorp/vault/plugins/database/mysql"
	_ "github.com/hashicorp/vault/sdk/physical/inmem"
	_ "github.com/hashicorp/vault/sdk/physical/file"
	_ "github.com/hashicorp/vault/vault"
)

func main() {}

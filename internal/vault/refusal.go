package vault

import (
	"strings"

	"github.com/tenure-csi/tenure/internal/lease"
	"github.com/tenure-csi/tenure/provider"
)

// refusal is one of Vault's reasons to refuse a login, by what its text holds.
type refusal struct {
	text   string
	class  provider.Class
	field  string
	remedy string
}

// refusals are those of the methods kubernetes, jwt and approle, in the order
// they are looked for.
var refusals = []refusal{
	{"audience", provider.Precondition, "audience", "set audience to one in bound_audiences of Vault role {role}, and list it under tokenRequests of CSIDriver secrets-store.csi.k8s.io"},
	{"token is expired", provider.Precondition, "", "wait for kubelet to send a new token; with requiresRepublish off in CSIDriver secrets-store.csi.k8s.io it never does"},
	{"expiration time", provider.Precondition, "", "wait for kubelet to send a new token; with requiresRepublish off in CSIDriver secrets-store.csi.k8s.io it never does"},
	{"not yet valid", provider.Precondition, "", "compare the clocks of the Kubernetes API server and of Vault"},
	{"subject", provider.Denied, "roleName", "bind Vault role {role} to subject system:serviceaccount:{namespace}:{account} (bound_subject)"},
	{"issuer", provider.Denied, "", "set bound_issuer of auth/{mount}/config to the issuer of this cluster's service account tokens"},
	{"signature", provider.Denied, "", "give auth/{mount}/config this cluster's present signing keys (jwks_url, jwt_validation_pubkeys or oidc_discovery_url)"},
	{"service account name not authorized", provider.Denied, "roleName", "add {account} to bound_service_account_names of Vault role {role}"},
	{"namespace not authorized", provider.Denied, "roleName", "add {namespace} to bound_service_account_namespaces of Vault role {role}"},
	{"could not be found", provider.Denied, "roleName", "write the role at auth/{mount}/role/{role}, or correct roleName"},
	{"invalid role name", provider.Denied, "roleName", "write the role at auth/{mount}/role/{role}, or correct roleName"},
	{"missing role", provider.Invalid, "roleName", "set roleName"},
	{"claim", provider.Denied, "roleName", "compare bound_claims of Vault role {role} with the pod's token"},
	{"invalid role or secret id", provider.Denied, provider.SecretRef, "write a new secret_id into the pod's Secret and compare its role_id: Vault does not tell whether one is wrong, or the secret_id expired (secret_id_ttl) or used up (secret_id_num_uses: each login is one use)"},
	{"missing secret_id", provider.Precondition, provider.SecretRef, "put a secret_id into the pod's Secret, beside its role_id; only an AppRole with bind_secret_id=false needs none"},
	{"cidr", provider.Denied, provider.SecretRef, "add the node's address, as Vault sees it, to secret_id_bound_cidrs of the AppRole and to cidr_list of the secret_id"},
	{"no handler for route", provider.Invalid, "vaultAuthMountPath", "enable the auth method at auth/{mount}, or correct vaultAuthMountPath or vaultNamespace"},
}

// refusedLogin is a login that Vault answers with 400, 403 or 404: permanent
// for this credential. Vault says 403 without a reason also for a mount that
// does not exist, so that nobody can find out which do.
func refusedLogin(c call, a answer) *lease.Failure {
	verdict := lease.Wrong
	if a.status == 403 {
		verdict = lease.Refused
	}
	words := strings.NewReplacer("{mount}", bounded(c.to.mount), "{role}", bounded(c.to.role),
		"{namespace}", c.by.Pod.Namespace, "{account}", c.by.Pod.ServiceAccount)
	known := refusals
	if c.login.Method == provider.AWSMethod {
		if a.upstream() {
			return c.fail(lease.Retry, provider.Unavailable, "", told(c, a), "")
		}
		known = awsRefusals
	}
	for _, r := range known {
		if a.says(r.text) {
			return c.fail(verdict, r.class, r.field, told(c, a), words.Replace(r.remedy))
		}
	}
	if c.login.Method == provider.AppRoleMethod {
		return c.fail(verdict, provider.Denied, provider.SecretRef, told(c, a), words.Replace(
			"check that auth/{mount} is enabled; Vault also answers so for a role_id that it locked after refused logins (user_lockout: by default 5, for 15 minutes)"))
	}
	return c.fail(verdict, provider.Denied, "roleName", told(c, a), words.Replace(
		"check that auth/{mount} is enabled and that its role {role} is bound to service account {account} of namespace {namespace}"))
}

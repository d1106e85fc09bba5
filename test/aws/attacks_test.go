package aws

import (
	"crypto/rand"
	"flag"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/test/fixture"
)

var update = flag.Bool("update", false, "write the golden files anew")

// attackRules bind one tenant to each of two service accounts of one namespace.
const attackRules = `
rules:
- name: ours
  namespaces: [shop]
  serviceAccounts: [app]
  tenants: [acme]
  vault: &vault {role: "SITE-{tenant}", mount: aws-SITE}
  aws: &aws
    roleArn: arn:aws:iam::123456789012:role/pool-{tenant}
    sessionPolicy:
      Version: 2012-10-17
      Statement: [{Effect: Allow, Action: "s3:*", Resource: "arn:aws:s3:::BUCKET/{tenant}/*"}]
- {name: theirs, namespaces: [shop], serviceAccounts: [other], tenants: [globex], vault: *vault, aws: *aws}
`

// attacked is a pool whose Vault has a secret for each tenant, and roles that only
// the tenant's service account, or the node, gets in as.
type attacked struct {
	*pool
	evil  *httptest.Server // the attacker's own Vault, which the daemon may ask
	calls atomic.Int64     // of it
}

func newAttacked(t *testing.T) *attacked {
	t.Helper()
	a := &attacked{}
	a.evil = httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { a.calls.Add(1) }))
	t.Cleanup(a.evil.Close)
	a.pool = newPool(t, attackRules, "--vault-aws-server-id="+serverID, "--allowed-vault-addrs="+a.evil.URL)
	ctx, vault := t.Context(), stack.Vault
	principal := "arn:aws:iam::" + fixture.Account + ":user/" + cloud.MinIO.User.ID
	mount := a.login(t, principal)
	for tenant, account := range map[string]string{"acme": "app", "globex": "other"} {
		role := a.name + "-" + tenant
		require.NoError(t, vault.Policy(ctx, role, fixture.ReadPolicy(a.name+"/"+tenant)))
		require.NoError(t, vault.WriteKV1(ctx, a.name, tenant, map[string]any{"owner": tenant}))
		may := fixture.AuthRole{Subject: "system:serviceaccount:shop:" + account, Policies: []string{role}, TTL: time.Hour}
		require.NoError(t, vault.JWTRole(ctx, a.name, role, may))
		require.NoError(t, vault.AWSAuthRole(ctx, mount, role, principal, may))
	}
	return a
}

// asked counts what anybody was asked: STS, Vault about the site, the attacker's own.
func (a *attacked) asked(t *testing.T) int {
	t.Helper()
	sum := int(a.calls.Load())
	for _, action := range []string{"AssumeRole", "AssumeRoleWithWebIdentity", "GetCallerIdentity"} {
		sum += cloud.Asked(action)
	}
	for _, path := range []string{"auth/" + a.name, "auth/aws-" + a.name, a.name + "/"} {
		n, err := stack.Vault.AuditCount(path, "")
		require.NoError(t, err)
		sum += n
	}
	return sum
}

// honest are the SPCs of a pod that wants what it may have, by whose identity asks
// whom. SITE stands for the site's name, EVIL for the attacker's own Vault.
var honest = map[string]map[string]string{
	"node at STS": {"tenants": "[acme]", "objects": byNode},
	"pod at STS":  {"tenants": "[acme]", "objects": byRole},
	"node at Vault": {
		"tenants": "[acme]", "objects": kv, "vaultAuthMethod": "aws", "awsIdentity": "node", "roleName": "any",
	},
	"pod at Vault": {"tenants": "[acme]", "objects": kv, "vaultAuthMountPath": "SITE", "roleName": "SITE-acme"},
}

const kv = "[{objectName: '{tenant}/kv', secretPath: 'SITE/{tenant}', format: json}]"

// attack is what a pod's author changes.
type attack struct {
	name   string
	by     string                            // of honest
	spc    map[string]string                 // changes it; "-" leaves a parameter out
	author map[string]string                 // the pod's volumeAttributes
	edit   func(*testing.T, *fixture.Volume) // what else is not as usual; nil: nothing
	asks   bool                              // whether STS or Vault is the one that refuses
}

// volume is that of the attacker's pod, shop/app.
func (a *attacked) volume(t *testing.T, row attack) *fixture.Volume {
	t.Helper()
	fill := func(more map[string]string) map[string]string {
		filled := map[string]string{}
		for name, value := range more {
			filled[name] = strings.NewReplacer("SITE", a.name, "EVIL", a.evil.URL).Replace(value)
		}
		return filled
	}
	parameters := maps.Clone(honest[row.by])
	maps.Copy(parameters, row.spc)
	maps.DeleteFunc(parameters, func(_, value string) bool { return value == "-" })
	id := strings.ToLower(rand.Text())
	pod := fixture.Pod{Namespace: "shop", Name: "app-" + id[:5], UID: id, ServiceAccount: "app"}
	v, err := a.node.Volume(pod, "aws", fixture.SPC{Name: "attack", Provider: "tenure", Parameters: fill(parameters)}, fill(row.author))
	require.NoError(t, err)
	v.Audiences = []string{"sts.amazonaws.com", "vault"}
	if row.edit != nil {
		row.edit(t, v)
	}
	return v
}

// tokens puts the author's own tokens where kubelet would put the pod's: what gets
// through where the driver's tokenRequests lack the audience.
func tokens(issuer func() *fixture.Issuer, account string) func(*testing.T, *fixture.Volume) {
	return func(t *testing.T, v *fixture.Volume) {
		t.Helper()
		who := v.Pod
		who.ServiceAccount = account
		var all []string
		for _, audience := range v.Audiences {
			signed, until, err := issuer().Token(who, audience, time.Hour)
			require.NoError(t, err)
			all = append(all, fmt.Sprintf(`%q: {"token": %q, "expirationTimestamp": %q}`, audience, signed, until.UTC().Format(time.RFC3339)))
		}
		v.Audiences = nil
		v.Attributes["csi.storage.k8s.io/serviceAccount.tokens"] = "{" + strings.Join(all, ", ") + "}"
	}
}

// attacks is the table. Each is tried on its own.
func attacks(t *testing.T) []attack {
	t.Helper()
	forger, err := fixture.NewIssuer()
	require.NoError(t, err)
	forged := func() *fixture.Issuer { return forger }
	stolen := func() *fixture.Issuer { return stack.Issuer }
	globex := map[string]string{"tenants": "[globex]"}
	object := func(more string) map[string]string {
		return map[string]string{"objects": "[{objectName: '{tenant}/aws', source: aws-sts, identity: node, format: json, " + more + "}]"}
	}
	var rows []attack
	for _, by := range []string{"node at STS", "pod at STS", "node at Vault", "pod at Vault"} {
		rows = append(rows,
			attack{name: "another tenant", by: by, spc: globex},
			attack{name: "another tenant beside its own", by: by, spc: map[string]string{"tenants": "[acme, globex]"}},
			attack{name: "another tenant through volumeAttributes", by: by, author: globex},
			attack{name: "another tenant, left out if need be", by: by, spc: map[string]string{"tenants": "[globex]", "onTenantFailure": "skip"}},
			attack{name: "another tenant as another service account", by: by, spc: globex, author: map[string]string{"csi.storage.k8s.io/serviceAccount.name": "other"}},
			attack{name: "another tenant with that account's token", by: by, spc: globex, edit: tokens(stolen, "other")},
			attack{name: "another tenant at its own Vault", by: by, spc: map[string]string{"tenants": "[globex]", "vaultAddress": "EVIL"}},
			attack{name: "a path for a name", by: by, spc: map[string]string{"tenants": "['acme/../globex']"}},
			attack{name: "an escaped path for a name", by: by, spc: map[string]string{"tenants": "['..%2fglobex']"}},
			attack{name: "a policy variable for a name", by: by, spc: map[string]string{"tenants": "['${aws:username}']"}},
			attack{name: "a quotation for a name", by: by, spc: map[string]string{"tenants": `['acme/*", "arn:aws:s3:::*']`}},
			attack{name: "a line end for a name", by: by, spc: map[string]string{"tenants": `["acme\nglobex"]`}},
			attack{name: "no name", by: by, spc: map[string]string{"tenants": "['']"}},
			attack{name: "another's files", by: by, spc: map[string]string{"objects": strings.Replace(honest[by]["objects"], "{tenant}/", "{tenant}/../globex/", 1)}},
		)
	}
	return append(rows,
		attack{name: "without tenants", by: "node at STS", spc: map[string]string{"tenants": "-", "objects": strings.Replace(byNode, "{tenant}/aws", "globex", 1)}},
		attack{name: "a role beside the node", by: "node at STS", spc: object("roleArn: 'arn:aws:iam::123456789012:role/pool-globex'")},
		attack{name: "a role beside the node in defaults", by: "node at STS", spc: map[string]string{"defaults": "{roleArn: 'arn:aws:iam::123456789012:role/pool-globex'}"}},
		attack{name: "a role beside the node through volumeAttributes", by: "node at STS", author: object("roleArn: 'arn:aws:iam::123456789012:role/pool-globex'")},
		attack{name: "a policy beside the node", by: "node at STS", spc: object("sessionPolicy: " + everything)},
		attack{name: "tags beside the node", by: "node at STS", spc: object("sessionTags: {tenant: globex}")},
		attack{name: "a token beside the node", by: "node at STS", spc: object("audience: vault")},
		attack{name: "an STS of its own", by: "node at STS", spc: object("endpoint: EVIL")},
		attack{name: "without a role", by: "pod at STS", spc: map[string]string{"objects": "[{objectName: '{tenant}/aws', source: aws-sts, format: json}]"}},
		attack{name: "another tenant's role", by: "pod at STS", spc: byRoleOf("globex", ""), asks: true},
		attack{name: "another tenant's role, for everything", by: "pod at STS", spc: byRoleOf("globex", everything), asks: true},
		attack{name: "another tenant's role through volumeAttributes", by: "pod at STS", author: byRoleOf("globex", ""), asks: true},
		attack{name: "another tenant's role without tenants", by: "pod at STS", spc: withoutTenants(byRoleOf("globex", "")), asks: true},
		attack{name: "a token of its own making", by: "pod at STS", edit: tokens(forged, "app"), asks: true},
		attack{name: "another account's token", by: "pod at STS", edit: tokens(stolen, "other")},
		attack{name: "without tenants", by: "node at Vault", spc: map[string]string{"tenants": "-", "objects": "[{objectName: kv, secretPath: SITE/globex}]"}},
		attack{name: "a Vault of its own", by: "node at Vault", spc: map[string]string{"vaultAddress": "EVIL"}},
		attack{name: "a Vault of its own through volumeAttributes", by: "node at Vault", author: map[string]string{"vaultAddress": "EVIL"}},
		attack{name: "a Vault by another name", by: "node at Vault", spc: map[string]string{"vaultTLSServerName": "evil.example.com"}},
		attack{name: "an unverified Vault", by: "node at Vault", spc: map[string]string{"vaultSkipTLSVerify": "true"}},
		attack{name: "a role at AWS beside the node", by: "node at Vault", spc: map[string]string{"vaultAwsRoleArn": cloud.Role("pool-globex")}},
		attack{name: "another tenant's path as its own tenant", by: "node at Vault", spc: map[string]string{"objects": strings.Replace(kv, "SITE/{tenant}", "SITE/globex", 1)}, asks: true},
		attack{name: "that and its Vault role", by: "node at Vault", spc: map[string]string{"roleName": "SITE-globex", "objects": strings.Replace(kv, "SITE/{tenant}", "SITE/globex", 1)}, asks: true},
		attack{name: "another tenant's path as its own tenant", by: "pod at Vault", spc: map[string]string{"objects": strings.Replace(kv, "SITE/{tenant}", "SITE/globex", 1)}, asks: true},
		attack{name: "another tenant's Vault role", by: "pod at Vault", spc: map[string]string{"roleName": "SITE-globex"}, asks: true},
		attack{name: "without tenants", by: "pod at Vault", spc: map[string]string{"tenants": "-", "objects": "[{objectName: kv, secretPath: SITE/globex}]"}, asks: true},
		attack{name: "a token of its own making", by: "pod at Vault", edit: tokens(forged, "app"), asks: true},
		attack{name: "another account's token", by: "pod at Vault", spc: map[string]string{"roleName": "SITE-globex"}, edit: tokens(stolen, "other")},
	)
}

// TestNobodyGetsAnothersTenant tries every way that a pod's author has to another
// tenant. The golden file has what they are told; but for the rows that say so,
// nobody was asked anything.
func TestNobodyGetsAnothersTenant(t *testing.T) {
	a := newAttacked(t)
	random := regexp.MustCompile(`127\.0\.0\.1:\d+|kid \w+`)
	var told strings.Builder
	for _, row := range attacks(t) {
		t.Run(row.by+"/"+row.name, func(t *testing.T) {
			before := a.asked(t)
			_, err := a.volume(t, row).Mount(t.Context())
			require.Error(t, err)
			require.Equal(t, row.asks, a.asked(t) != before, "whether anybody was asked: %v", err)
			text := strings.ReplaceAll(random.ReplaceAllString(err.Error(), "RANDOM"), a.name, "SITE")
			fmt.Fprintf(&told, "%s, %s:\n  %s\n", row.by, row.name, text)
		})
	}
	require.Zero(t, a.calls.Load(), "the attacker's own Vault was shown something")
	const file = "testdata/attacks.golden"
	if *update {
		require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o750))
		require.NoError(t, os.WriteFile(file, []byte(told.String()), 0o600))
	}
	want, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, string(want), told.String())
}

// TestAttackersGetTheirOwn has what is not refused because it changes nothing: the
// pod gets its own tenant, and no file of another.
func TestAttackersGetTheirOwn(t *testing.T) {
	a := newAttacked(t)
	for _, row := range []attack{
		{name: "every name there is", by: "node at STS", spc: map[string]string{"tenants": "['*']"}},
		{name: "every name there is, and its own", by: "pod at STS", spc: map[string]string{"tenants": "[acme, 'g*', '*']"}},
		{name: "another tenant, left out", by: "node at STS", spc: map[string]string{"tenants": "[acme, globex]", "onTenantFailure": "skip"}},
		{name: "another service account", by: "node at STS", author: map[string]string{"csi.storage.k8s.io/serviceAccount.name": "other"}},
		{name: "another account's token", by: "node at STS", edit: tokens(func() *fixture.Issuer { return stack.Issuer }, "other")},
		{name: "another Vault role", by: "node at Vault", spc: map[string]string{"roleName": "SITE-globex"}},
		{name: "another mount", by: "node at Vault", spc: map[string]string{"vaultAuthMountPath": "SITE"}},
		{name: "another namespace of Vault", by: "node at Vault", spc: map[string]string{"vaultNamespace": "evil"}},
	} {
		t.Run(row.by+"/"+row.name, func(t *testing.T) {
			v := a.volume(t, row)
			_, err := v.Mount(t.Context())
			require.NoError(t, err)
			files, err := v.Files()
			require.NoError(t, err)
			require.Len(t, files, 1)
			if files[0] == "acme/kv" {
				text, err := v.Read(files[0])
				require.NoError(t, err)
				require.JSONEq(t, `{"owner": "acme"}`, string(text))
				return
			}
			keysIn(t, v, "acme/aws").confined(t, "acme", "globex")
		})
	}
	require.Zero(t, a.calls.Load())
}

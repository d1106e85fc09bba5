package aws

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/tenure-csi/tenure/internal/lease"
	"github.com/tenure-csi/tenure/test/fixture"
)

// pool is a site whose daemon has credentials of its own at AWS and tenant bindings.
type pool struct {
	*site
	bindings string // the file
}

// newPool starts the daemon as a node's: credentials in its environment, and rules,
// in which SITE stands for the site's name and BUCKET for the bucket's.
func newPool(t *testing.T, rules string, flags ...string) *pool {
	t.Helper()
	p := &pool{bindings: filepath.Join(t.TempDir(), "bindings.yaml")}
	require.NoError(t, os.WriteFile(p.bindings, []byte("rules: []\n"), 0o600))
	user := cloud.MinIO.User
	env := []string{"AWS_ACCESS_KEY_ID=" + user.ID, "AWS_SECRET_ACCESS_KEY=" + user.Secret, "AWS_EC2_METADATA_DISABLED=true"}
	p.site = newSiteIn(t, env, append(flags, "--tenant-bindings="+p.bindings)...)
	p.bind(t, rules)
	require.NoError(t, p.daemon.Restart(t.Context())) // it knows them from the start on
	return p
}

// bind replaces the file of rules as kubelet replaces a ConfigMap's.
func (p *pool) bind(t *testing.T, rules string) {
	t.Helper()
	text := strings.NewReplacer("SITE", p.name, "BUCKET", cloud.MinIO.Bucket).Replace(rules)
	require.NoError(t, os.WriteFile(p.bindings+".tmp", []byte(text), 0o600))
	require.NoError(t, os.Rename(p.bindings+".tmp", p.bindings))
}

// poolRules let one application be two tenants, and each pod of namespace silo what
// its namespace is.
const poolRules = `
rules:
- name: pool
  namespaces: [shop]
  serviceAccounts: [app]
  tenants: [acme, globex]
  aws: &tenant
    roleArn: arn:aws:iam::123456789012:role/pool-{tenant}
    sessionTags: {tenant: "{tenant}", team: "{namespace}"}
    sessionPolicy:
      Version: 2012-10-17
      Statement: [{Effect: Allow, Action: "s3:*", Resource: "arn:aws:s3:::BUCKET/{tenant}/*"}]
- {name: silo, namespaces: [hooli], serviceAccounts: [app], tenants: [hooli], aws: *tenant}
- name: without tenants
  namespaces: [initech]
  serviceAccounts: ["*"]
  aws:
    roleArn: arn:aws:iam::123456789012:role/{namespace}
    sessionPolicy: |
      {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "arn:aws:s3:::BUCKET/{namespace}/*"}]}
`

// The objects of a pool, by who asks.
const (
	byNode = "[{objectName: '{tenant}/aws', source: aws-sts, identity: node, format: json}]"
	byPod  = `
- objectName: "{tenant}/aws"
  source: aws-sts
  roleArn: arn:aws:iam::123456789012:role/pool
  format: json
  sessionPolicy:
    Version: 2012-10-17
    Statement: [{Effect: Allow, Action: "s3:*", Resource: "arn:aws:s3:::tenants/{tenant}/*"}]
`
	byVault = "[{objectName: '{tenant}/aws', secretPath: 'SITE/sts/{tenant}', format: json}]"
)

// of describes a volume of a new pod of a namespace, for tenants (a YAML list; empty: without).
func (p *pool) of(t *testing.T, namespace, tenants, objects string, more map[string]string) *fixture.Volume {
	t.Helper()
	parameters := map[string]string{"objects": strings.ReplaceAll(objects, "SITE", p.name)}
	if tenants != "" {
		parameters["tenants"] = tenants
	}
	maps.Copy(parameters, more)
	v := p.direct(t, namespace, parameters)
	v.Audiences = []string{"sts.amazonaws.com", "vault"}
	return v
}

// confined checks with a real store that keys read and write below the prefix of
// one tenant, and of no other.
func (k keys) confined(t *testing.T, mine string, others ...string) {
	t.Helper()
	root := keys{ID: cloud.MinIO.User.ID, Secret: cloud.MinIO.User.Secret}
	for _, tenant := range append(others, mine) {
		_, err := store(root.provider()).PutObject(t.Context(), &s3.PutObjectInput{
			Bucket: &cloud.MinIO.Bucket, Key: aws.String(tenant + "/owner"), Body: strings.NewReader(tenant),
		})
		require.NoError(t, err)
	}
	text, code := k.get(t, mine+"/owner")
	require.Empty(t, code)
	require.Equal(t, mine, text)
	require.Empty(t, k.put(t.Context(), mine))
	for _, other := range others {
		_, code := k.get(t, other+"/owner")
		require.Equal(t, "AccessDenied", code, "%s reads what is %s's", mine, other)
		require.Equal(t, "AccessDenied", k.put(t.Context(), other), "%s writes what is %s's", mine, other)
	}
}

// get reads an object, and answers AWS's code of a refusal.
func (k keys) get(t *testing.T, key string) (text, code string) {
	t.Helper()
	out, err := store(k.provider()).GetObject(t.Context(), &s3.GetObjectInput{Bucket: &cloud.MinIO.Bucket, Key: &key})
	if err != nil {
		return "", codeOf(err)
	}
	defer out.Body.Close()
	b, err := io.ReadAll(out.Body)
	require.NoError(t, err)
	return string(b), ""
}

// TestEachFileIsOneTenants mounts silos and pools, by the node's, the pod's and
// Vault's identity. MinIO's STS grants the sessions, its store enforces them.
func TestEachFileIsOneTenants(t *testing.T) {
	p := newPool(t, poolRules, "--cluster-name=prod")
	p.engine(t)
	all := []string{"acme", "globex", "hooli", "initech"}
	for _, tenant := range all[:2] {
		p.role(t, tenant, "assumed_role")
	}
	vault := map[string]string{"roleName": p.name, "vaultAuthMountPath": p.name}
	for _, row := range []struct {
		name, namespace, tenants, objects string
		more                              map[string]string
		files                             map[string]string // by tenant
		action                            string
	}{
		{"silo without tenants by the node", "initech", "", "[{objectName: aws, source: aws-sts, identity: node, format: json}]", nil, map[string]string{"initech": "aws"}, "AssumeRole"},
		{"silo by the node", "hooli", "[hooli]", byNode, nil, map[string]string{"hooli": "hooli/aws"}, "AssumeRole"},
		{"pool by the node", "shop", "[acme, globex]", byNode, nil, map[string]string{"acme": "acme/aws", "globex": "globex/aws"}, "AssumeRole"},
		{"pool of a pattern by the node", "shop", "['*']", byNode, nil, map[string]string{"acme": "acme/aws", "globex": "globex/aws"}, "AssumeRole"},
		{"pool by the pod", "shop", "[acme, globex]", byPod, nil, map[string]string{"acme": "acme/aws", "globex": "globex/aws"}, "AssumeRoleWithWebIdentity"},
		{"pool by Vault's engine", "shop", "[acme, globex]", byVault, vault, map[string]string{"acme": "acme/aws", "globex": "globex/aws"}, "AssumeRole"},
	} {
		t.Run(row.name, func(t *testing.T) {
			asked := cloud.Asked(row.action)
			v := p.of(t, row.namespace, row.tenants, row.objects, row.more)
			_, err := v.Mount(t.Context())
			require.NoError(t, err)
			require.Equal(t, len(row.files), cloud.Asked(row.action)-asked, "one session a tenant")
			files, err := v.Files()
			require.NoError(t, err)
			require.Len(t, files, len(row.files))
			for tenant, file := range row.files {
				var others []string
				for _, other := range all {
					if other != tenant {
						others = append(others, other)
					}
				}
				keysIn(t, v, file).confined(t, tenant, others...)
			}
			require.NoError(t, p.node.DeletePod(v.Pod))
		})
	}
}

// TestExamplePool mounts the example's SecretProviderClasses, unchanged, with its rule.
func TestExamplePool(t *testing.T) {
	const dir = "../../examples/pool-on-aws/"
	text, err := os.ReadFile(dir + "values.yaml")
	require.NoError(t, err)
	var values struct {
		TenantBindings map[string]any `yaml:"tenantBindings"`
	}
	require.NoError(t, yaml.Unmarshal(text, &values))
	rules, err := yaml.Marshal(values.TenantBindings)
	require.NoError(t, err)
	p := newPool(t, string(rules))
	for _, file := range []string{"sts-node.yaml", "sts-pod.yaml"} {
		t.Run(file, func(t *testing.T) {
			spc, err := fixture.ReadSPC(dir + file)
			require.NoError(t, err)
			id := strings.ToLower(rand.Text())
			v, err := p.node.Volume(fixture.Pod{Namespace: spc.Namespace, Name: "files", UID: id, ServiceAccount: "files"}, "aws", spc, nil)
			require.NoError(t, err)
			v.Audiences = []string{"sts.amazonaws.com"}
			_, err = v.Mount(t.Context())
			require.NoError(t, err)
			for mine, other := range map[string]string{"acme": "globex", "globex": "acme"} {
				text, err := v.Read(mine + "/credentials.json")
				require.NoError(t, err)
				var given struct{ AccessKeyID, SecretAccessKey, SessionToken string } // as in credential_process, but for case
				require.NoError(t, json.Unmarshal(text, &given))
				keys{ID: given.AccessKeyID, Secret: given.SecretAccessKey, Token: given.SessionToken}.confined(t, mine, other)
			}
		})
	}
}

// TestRulesSayWhatTheNodeAsks: role, tags and the name of the node's sessions. The
// front notes them; MinIO has no tags.
func TestRulesSayWhatTheNodeAsks(t *testing.T) {
	p := newPool(t, poolRules, "--cluster-name=prod")
	before := cloud.Asked("AssumeRole")
	v := p.of(t, "shop", "[acme, globex]", byNode, nil)
	_, err := v.Mount(t.Context())
	require.NoError(t, err)
	told := map[string]string{}
	for _, form := range cloud.Forms("AssumeRole")[before:] {
		tags := map[string]string{}
		for _, n := range []string{"1", "2"} {
			tags[form.Get("Tags.member."+n+".Key")] = form.Get("Tags.member." + n + ".Value")
		}
		require.Equal(t, "shop", tags["team"])
		require.Equal(t, "shop.app@prod", form.Get("RoleSessionName"))
		require.JSONEq(t, tenantPolicy(tags["tenant"]), form.Get("Policy"))
		told[tags["tenant"]] = form.Get("RoleArn")
	}
	require.Equal(t, map[string]string{"acme": cloud.Role("pool-acme"), "globex": cloud.Role("pool-globex")}, told)
	who, err := keysIn(t, v, "acme/aws").identity(t.Context())
	require.NoError(t, err)
	require.Equal(t, "arn:aws:sts::"+fixture.Account+":assumed-role/pool-acme/shop.app@prod", who)
}

// TestPoolFollowsItsRules takes a tenant out of the rules and replaces what the
// other had, while two volumes live: one by the node's identity, one by the pod's.
func TestPoolFollowsItsRules(t *testing.T) {
	cloud.EndSessionsAfter(5 * time.Minute)
	t.Cleanup(func() { cloud.EndSessionsAfter(0) })
	p := newPool(t, poolRules)
	ctx := within(t, 10*time.Minute)
	volumes := map[string]*fixture.Volume{"node": p.of(t, "shop", "['*']", byNode, nil), "pod": p.of(t, "shop", "['*']", byPod, nil)}
	inodes, ids := map[string]uint64{}, map[string]string{}
	for by, v := range volumes {
		_, err := v.Mount(ctx)
		require.NoError(t, err)
		keysIn(t, v, "acme/aws").confined(t, "acme", "globex")
		inodes[by], ids[by] = inode(t, v, "globex/aws"), keysIn(t, v, "globex/aws").ID
	}
	only := strings.Replace(poolRules, "[acme, globex]", "[globex]", 1)
	p.bind(t, only)
	for by, v := range volumes {
		require.NoError(t, fixture.Eventually(ctx, 0, func(context.Context) (int, error) {
			left, err := filepath.Glob(filepath.Join(v.Target, "*", "acme")) // ..data, and every older directory
			return len(left), err
		}), by)
		require.Equal(t, inodes[by], inode(t, v, "globex/aws"), "%s: the other tenant's file is the same one", by)
		keysIn(t, v, "globex/aws").confined(t, "globex", "acme")
	}
	p.bind(t, strings.Replace(only, "  aws:", "  rotateAfter: "+time.Now().UTC().Format(time.RFC3339)+"\n  aws:", 1))
	for by, v := range volumes {
		require.NoError(t, fixture.Eventually(ctx, true, func(context.Context) (bool, error) {
			return keysIn(t, v, "globex/aws").ID != ids[by], nil
		}), by)
		keysIn(t, v, "globex/aws").confined(t, "globex", "acme")
		leases := p.status(t, v).Leases
		require.Len(t, leases, 1)
		require.Equal(t, lease.TenantChange, leases[0].Reason, by)
	}
}

func inode(t *testing.T, v *fixture.Volume, file string) uint64 {
	t.Helper()
	info, err := v.Stat(file)
	require.NoError(t, err)
	return info.Sys().(*syscall.Stat_t).Ino
}

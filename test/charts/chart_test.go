package charts

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"
)

// TestDefault checks what a node's security and an upgrade depend on.
func TestDefault(t *testing.T) {
	t.Parallel()
	m := render(t, "")
	set, pod, c := m.daemonSet, m.daemonSet.Spec.Template.Spec, m.container(t)
	require.Equal(t, "tenure", set.Name)
	require.Equal(t, "kube-system", set.Namespace)
	require.Equal(t, apps.DaemonSetUpdateStrategy{
		Type:          apps.RollingUpdateDaemonSetStrategyType,
		RollingUpdate: &apps.RollingUpdateDaemonSet{MaxUnavailable: new(intstr.FromInt32(1)), MaxSurge: new(intstr.FromInt32(0))},
	}, set.Spec.UpdateStrategy)
	for name, value := range set.Spec.Selector.MatchLabels {
		require.Equal(t, value, set.Spec.Template.Labels[name], "the DaemonSet must find its own pods")
	}

	require.Equal(t, "tenure", pod.ServiceAccountName)
	require.Equal(t, new(false), pod.AutomountServiceAccountToken)
	require.Equal(t, new(false), m.account.AutomountServiceAccountToken)
	require.Nil(t, m.role)
	require.Nil(t, m.binding)
	require.Equal(t, "system-node-critical", pod.PriorityClassName)
	require.Equal(t, new(int64(120)), pod.TerminationGracePeriodSeconds)
	require.Equal(t, []core.Toleration{{Operator: core.TolerationOpExists}}, pod.Tolerations)
	require.Equal(t, map[string]string{"kubernetes.io/os": "linux"}, pod.NodeSelector)
	require.False(t, pod.HostNetwork)
	require.Equal(t, core.DNSClusterFirst, pod.DNSPolicy)

	require.Equal(t, "registry.example.com/tenure:"+appVersion(t), c.Image)
	require.Equal(t, &core.SecurityContext{
		RunAsUser: new(int64(0)), RunAsGroup: new(int64(0)), RunAsNonRoot: new(false),
		Privileged: new(false), AllowPrivilegeEscalation: new(false), ReadOnlyRootFilesystem: new(true),
		Capabilities:   &core.Capabilities{Drop: []core.Capability{"ALL"}, Add: []core.Capability{"CHOWN", "FOWNER"}},
		SeccompProfile: &core.SeccompProfile{Type: core.SeccompProfileTypeRuntimeDefault},
	}, c.SecurityContext)
	require.Empty(t, c.Env)
	require.True(t, c.Resources.Limits.Cpu().IsZero(), "a CPU limit throttles TLS handshakes")
	require.Equal(t, "/healthz", c.LivenessProbe.HTTPGet.Path)
	require.Equal(t, "/readyz", c.ReadinessProbe.HTTPGet.Path)
	require.Equal(t, []core.ContainerPort{{Name: "http", ContainerPort: 8080}}, c.Ports)
	require.Contains(t, c.Args, "--health-addr=:8080")
}

// TestMemoryLimit holds the limit to what test/e2e has measured: a page of a file takes
// a quarter more with the kernel's share, and the process 192 MiB.
func TestMemoryLimit(t *testing.T) {
	t.Parallel()
	limits := render(t, "").container(t).Resources.Limits
	budget := limits.Memory().Value() / 2 // the daemon's own default: the chart gives no --volume-budget
	require.GreaterOrEqual(t, limits.Memory().Value(), budget*5/4+192<<20)
}

func TestDirectories(t *testing.T) {
	t.Parallel()
	m := render(t, "{kubeletRootDir: /var/lib/k0s/kubelet, providersDir: /etc/kubernetes/secrets-store-csi-providers, stateDir: /run/other}")
	for _, row := range []struct {
		path, flag  string
		kind        core.HostPathType
		propagation *core.MountPropagationMode
	}{
		{"/var/lib/k0s/kubelet/pods", "--kubelet-root-dir=/var/lib/k0s/kubelet", core.HostPathDirectory, new(core.MountPropagationHostToContainer)},
		{"/etc/kubernetes/secrets-store-csi-providers", "--providers-dir=/etc/kubernetes/secrets-store-csi-providers", core.HostPathDirectoryOrCreate, nil},
		{"/run/other", "--state-dir=/run/other", core.HostPathDirectoryOrCreate, nil},
	} {
		mount, source := m.mountOf(t, row.path)
		require.False(t, mount.ReadOnly)
		require.Equal(t, row.propagation, mount.MountPropagation)
		require.Equal(t, &core.HostPathVolumeSource{Path: row.path, Type: &row.kind}, source.HostPath, "the same path in the container and on the node")
		require.Contains(t, m.container(t).Args, row.flag)
	}
}

// TestFlags renders each value that becomes a flag, by itself.
func TestFlags(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name, values string
		want         []string
	}{
		{"names", "providerNames: [tenure, vault]", []string{"--provider-name=tenure,vault"}},
		{"addresses", "vault: {addrs: ['https://a:8200', 'https://b:8200']}", []string{"--vault-addr=https://a:8200", "--vault-addr=https://b:8200"}},
		{"allowed", "vault: {allowedAddrs: ['https://c:8200']}", []string{"--allowed-vault-addrs=https://c:8200"}},
		{"login", "vault: {mount: k8s/prod, namespace: team}", []string{"--vault-mount=k8s/prod", "--vault-namespace=team"}},
		{"AWS logins", "vault: {awsServerID: vault.internal, awsKeyDelay: 15s}", []string{"--vault-aws-server-id=vault.internal", "--vault-aws-key-delay=15s"}},
		{"CA in a ConfigMap", "vault: {tls: {ca: {configMap: ca}}}", []string{"--vault-tls-ca-cert=/etc/tenure/ca/ca.crt"}},
		{"CA in a Secret", "vault: {tls: {ca: {secret: ca, key: root.pem}}}", []string{"--vault-tls-ca-cert=/etc/tenure/ca/root.pem"}},
		{"client certificate", "vault: {tls: {clientSecret: c}}", []string{"--vault-tls-client-cert=/etc/tenure/client/tls.crt", "--vault-tls-client-key=/etc/tenure/client/tls.key"}},
		{"server name", "vault: {tls: {serverName: vault.internal}}", []string{"--vault-tls-server-name=vault.internal"}},
		{"no verification", "vault: {tls: {allowSkipVerify: true}}", []string{"--allow-skip-tls-verify"}},
		{"AWS", "{aws: {region: eu-central-1, stsEndpoint: 'https://sts.example.com', fips: true, podIdentityAgent: 'http://a'}, clusterName: c}", []string{
			"--aws-region=eu-central-1", "--aws-sts-endpoint=https://sts.example.com", "--aws-fips", "--aws-pod-identity-agent=http://a", "--cluster-name=c",
		}},
		{"budget", "volumeBudget: 64Mi", []string{"--volume-budget=64Mi"}},
		{"level", "logVerbosity: warn", []string{"--log-level=warn"}},
		{"klog's low number", "logVerbosity: 3", []string{"--log-level=info"}},
		{"klog's high number", "logVerbosity: 4", []string{"--log-level=debug"}},
		{"JSON", "logFormatJSON: true", []string{"--log-format=json"}},
		{"port", "{healthzPort: 9000, metrics: {port: 9000}}", []string{"--health-addr=:9000"}},
		{"key of one's own", "versionKey: {existingSecret: mine, key: k}", []string{"--version-key-file=/etc/tenure/version-key/k"}},
		{"more", "extraArgs: [--tls-dir=/tls]", []string{"--tls-dir=/tls"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			args := render(t, row.values).container(t).Args
			require.Subset(t, args, row.want)
			requireKnown(t, args)
		})
	}
}

// requireKnown checks that the daemon has the flags.
func requireKnown(t *testing.T, args []string) {
	t.Helper()
	require.Equal(t, "serve", args[0])
	require.Subset(t, daemonFlags(t), names(args[1:]))
}

func daemonFlags(t *testing.T) []string {
	t.Helper()
	help, err := exec.CommandContext(t.Context(), repository+"/bin/tenure", "serve", "--help").Output()
	require.NoError(t, err, "build it with: make build")
	return strings.Fields(strings.Join(regexp.MustCompile(`(?m)^  --\S+`).FindAllString(string(help), -1), " "))
}

// names answers flags without what they are set to, each once.
func names(args []string) (flags []string) {
	for _, arg := range args {
		if name, _, _ := strings.Cut(arg, "="); !slices.Contains(flags, name) {
			flags = append(flags, name)
		}
	}
	return flags
}

// TestEveryFlagIsAValue switches everything on: a new flag of the daemon must be a
// value, or be named here as one for extraArgs.
func TestEveryFlagIsAValue(t *testing.T) {
	t.Parallel()
	forExtraArgs := []string{"--kubeconfig", "--tls-dir", "--vault-tls-ca-directory"}
	args := render(t, `
vault:
  addrs: ["https://a:8200"]
  allowedAddrs: ["https://b:8200"]
  mount: k8s
  namespace: team
  awsServerID: a
  awsKeyDelay: 1s
  tls: {ca: {secret: ca}, clientSecret: c, serverName: s, allowSkipVerify: true}
aws: {region: r, stsEndpoint: "https://s", fips: true, podIdentityAgent: "http://a"}
clusterName: c
volumeBudget: 64Mi
kubernetes: {events: true, podWatch: true, spcWatch: true, statusSync: true, tokenRequest: true}
tenantBindings: {rules: []}
`).container(t).Args[1:]
	require.Subset(t, append(names(args), forExtraArgs...), daemonFlags(t))
}

func TestSecretsAndConfigMapsAreMounted(t *testing.T) {
	t.Parallel()
	m := render(t, "{vault: {tls: {ca: {secret: ca}, clientSecret: client}}, versionKey: {existingSecret: mine}}")
	_, ca := m.mountOf(t, "/etc/tenure/ca")
	require.Equal(t, "ca", ca.Secret.SecretName)
	require.Equal(t, []core.KeyToPath{{Key: "ca.crt", Path: "ca.crt"}}, ca.Secret.Items, "not the CA's key")
	_, client := m.mountOf(t, "/etc/tenure/client")
	require.Equal(t, "client", client.Secret.SecretName)
	_, key := m.mountOf(t, "/etc/tenure/version-key")
	require.Equal(t, "mine", key.Secret.SecretName)
	require.Nil(t, m.secret, "there is one already")

	m = render(t, "vault: {tls: {ca: {configMap: ca}}}")
	_, ca = m.mountOf(t, "/etc/tenure/ca")
	require.Equal(t, "ca", ca.ConfigMap.Name)
}

func TestVersionKey(t *testing.T) {
	t.Parallel()
	one, other := render(t, ""), render(t, "")
	require.Equal(t, "tenure-version-key", one.secret.Name)
	require.Regexp(t, "^[A-Za-z0-9]{40}$", string(one.secret.Data["key"]))
	require.NotEqual(t, one.secret.Data, other.secret.Data)
	_, source := one.mountOf(t, "/etc/tenure/version-key")
	require.Equal(t, one.secret.Name, source.Secret.SecretName)

	none := render(t, "versionKey: {create: false}")
	require.Nil(t, none.secret)
	require.NotContains(t, strings.Join(none.container(t).Args, " "), "--version-key-file")
}

func TestPodsSettings(t *testing.T) {
	t.Parallel()
	m := render(t, `
nameOverride: other
commonLabels: {team: a}
podLabels: {tier: node}
podAnnotations: {note: b}
imagePullSecrets: [{name: pull}]
image: {digest: sha256:0000000000000000000000000000000000000000000000000000000000000001}
nodeSelector: {disk: fast}
tolerations: []
priorityClassName: ""
hostNetwork: true
dnsConfig: {searches: [example.com]}
podSecurityContext: {seLinuxOptions: {type: spc_t}}
serviceAccount: {create: false, name: mine}
extraEnv: [{name: HTTPS_PROXY, value: "http://proxy"}]
extraVolumes: [{name: tls, secret: {secretName: tls}}]
extraVolumeMounts: [{name: tls, mountPath: /tls}]
livenessProbe: {periodSeconds: 33}
healthzPath: /readyz
`)
	pod, c := m.daemonSet.Spec.Template.Spec, m.container(t)
	require.Equal(t, "tenure-other", m.daemonSet.Name)
	require.Equal(t, "a", m.daemonSet.Labels["team"])
	require.Equal(t, "node", m.daemonSet.Spec.Template.Labels["tier"])
	require.Equal(t, "b", m.daemonSet.Spec.Template.Annotations["note"])
	require.Equal(t, []core.LocalObjectReference{{Name: "pull"}}, pod.ImagePullSecrets)
	require.Equal(t, "registry.example.com/tenure@sha256:0000000000000000000000000000000000000000000000000000000000000001", c.Image)
	require.Equal(t, map[string]string{"kubernetes.io/os": "linux", "disk": "fast"}, pod.NodeSelector)
	require.Empty(t, pod.Tolerations)
	require.Empty(t, pod.PriorityClassName)
	require.True(t, pod.HostNetwork)
	require.Equal(t, core.DNSClusterFirstWithHostNet, pod.DNSPolicy)
	require.Equal(t, []string{"example.com"}, pod.DNSConfig.Searches)
	require.Equal(t, "spc_t", pod.SecurityContext.SELinuxOptions.Type)
	require.Nil(t, m.account)
	require.Equal(t, "mine", pod.ServiceAccountName)
	require.Equal(t, []core.EnvVar{{Name: "HTTPS_PROXY", Value: "http://proxy"}}, c.Env)
	_, tls := m.mountOf(t, "/tls")
	require.Equal(t, "tls", tls.Secret.SecretName)
	require.Equal(t, int32(33), c.LivenessProbe.PeriodSeconds)
	require.Equal(t, "/readyz", c.LivenessProbe.HTTPGet.Path)
}

func TestNetworkPolicyAndPodMonitor(t *testing.T) {
	t.Parallel()
	m := render(t, "")
	require.Nil(t, m.networkPolicy)
	require.Nil(t, m.podMonitor)

	m = render(t, "{networkPolicy: {enabled: true}, podMonitor: {enabled: true, labels: {release: prometheus}}}")
	labels := m.daemonSet.Spec.Selector.MatchLabels
	require.Equal(t, labels, m.networkPolicy.Spec.PodSelector.MatchLabels)
	require.Equal(t, "Ingress", string(m.networkPolicy.Spec.PolicyTypes[0]))
	require.Len(t, m.networkPolicy.Spec.PolicyTypes, 1, "egress is not restricted unasked")
	require.Empty(t, m.networkPolicy.Spec.Ingress)
	require.Equal(t, labels, m.podMonitor.Spec.Selector.MatchLabels)
	require.Equal(t, "prometheus", m.podMonitor.Metadata.Labels["release"])
	require.Equal(t, m.container(t).Ports[0].Name, m.podMonitor.Spec.PodMetricsEndpoints[0].Port)

	m = render(t, `networkPolicy:
  enabled: true
  metricsFrom: [{namespaceSelector: {matchLabels: {name: monitoring}}}]
  egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8}}]}]`)
	require.Len(t, m.networkPolicy.Spec.PolicyTypes, 2)
	require.Equal(t, "monitoring", m.networkPolicy.Spec.Ingress[0].From[0].NamespaceSelector.MatchLabels["name"])
	require.Equal(t, m.container(t).Ports[0].Name, m.networkPolicy.Spec.Ingress[0].Ports[0].Port.String())
	require.Equal(t, "10.0.0.0/8", m.networkPolicy.Spec.Egress[0].To[0].IPBlock.CIDR)
}

func TestTenantBindings(t *testing.T) {
	t.Parallel()
	// Dates are what a templating tool likes to rewrite.
	const bindings = `
rules:
  - name: shop
    namespaces: [shop]
    serviceAccounts: [orders]
    tenants: ["a-*"]
    rotateAfter: 2026-11-01T12:00:00Z
    aws:
      roleArn: arn:aws-eusc:iam::123456789012:role/{tenant}
      region: eusc-de-east-1
      sessionPolicy: {Version: 2012-10-17, Statement: [{Effect: Allow, Resource: "arn:aws:s3:::b/{tenant}/*"}]}
`
	m := render(t, "tenantBindings:"+strings.ReplaceAll(bindings, "\n", "\n  "))
	require.Contains(t, m.container(t).Args, "--tenant-bindings=/etc/tenure/tenants/bindings.yaml")
	requireKnown(t, m.container(t).Args)
	mount, source := m.mountOf(t, "/etc/tenure/tenants")
	require.Empty(t, mount.SubPath, "a subPath never changes")
	require.Equal(t, m.configMap.Name, source.ConfigMap.Name)
	rendered := []byte(m.configMap.Data["bindings.yaml"])
	var want, got any
	require.NoError(t, yaml.Unmarshal([]byte(bindings), &want))
	require.NoError(t, yaml.Unmarshal(rendered, &got))
	require.Equal(t, want, got)
	file := filepath.Join(t.TempDir(), "bindings.yaml")
	require.NoError(t, os.WriteFile(file, rendered, 0o600))
	said, err := exec.CommandContext(t.Context(), repository+"/bin/tenure", "validate", "--tenant-bindings="+file).CombinedOutput()
	require.NoError(t, err, "%s", said)
}

// TestSubChart installs the driver along, with what Tenure needs of it.
func TestSubChart(t *testing.T) {
	t.Parallel()
	require.Nil(t, render(t, "").csiDriver)
	driver := render(t, "secrets-store-csi-driver: {install: true}").csiDriver
	require.Equal(t, "secrets-store.csi.k8s.io", driver.Name)
	require.Equal(t, new(true), driver.Spec.RequiresRepublish)
	require.Equal(t, "vault", driver.Spec.TokenRequests[0].Audience)
	text, err := helm(t, "secrets-store-csi-driver: {install: true}", "template", "tenure", chart, needed)
	require.NoError(t, err)
	require.Contains(t, text, `"--enable-secret-rotation=true"`)
	require.Contains(t, text, `"--rotation-poll-interval=1s"`)
}

func appVersion(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(repository + "/charts/tenure/Chart.yaml")
	require.NoError(t, err)
	return regexp.MustCompile(`(?m)^appVersion: (.*)$`).FindStringSubmatch(string(text))[1]
}

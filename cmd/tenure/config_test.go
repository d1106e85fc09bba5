package main

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestPrecedenceOfEnvironmentAndFlags(t *testing.T) {
	env := []string{
		"VAULT_ADDR=https://env:8200", "VAULT_CACERT=/env/ca", "VAULT_CAPATH=/env/cas", "VAULT_CLIENT_CERT=/env/cert",
		"VAULT_CLIENT_KEY=/env/key", "VAULT_TLS_SERVER_NAME=env", "VAULT_NAMESPACE=env", "VAULT_SKIP_VERIFY=1",
		"VAULT_MAX_RETRIES=9", "VAULT_AGENT_ADDR=http://agent", "VAULT_EMPTY=", "PATH=/bin", "AWS_REGION=eu-central-1",
	}
	c, err := parseConfig(nil, env, nil)
	require.NoError(t, err)
	require.Equal(t, vaultFlags{
		addrs: []string{"https://env:8200"}, caCert: "/env/ca", caDir: "/env/cas", clientCert: "/env/cert",
		clientKey: "/env/key", serverName: "env", namespace: "env", allowSkipVerify: true, awsKeyDelay: 10 * time.Second,
	}, c.vault)
	require.Equal(t, []string{"VAULT_AGENT_ADDR", "VAULT_MAX_RETRIES"}, c.ignoredFromEnv, "what is set without effect is named")
	require.Equal(t, []string{"tenure"}, c.providers)
	require.Equal(t, awsFlags{region: "eu-central-1", agent: "http://169.254.170.23/v1/credentials"}, c.aws)

	c, err = parseConfig([]string{
		"--vault-addr=https://flag, https://flag2", "--vault-addr=https://flag3", "--vault-tls-ca-cert=/flag/ca", "--vault-tls-ca-directory=/flag/cas",
		"--vault-tls-client-cert=/flag/cert", "--vault-tls-client-key=/flag/key", "--vault-tls-server-name=flag",
		"--vault-namespace=flag", "--allow-skip-tls-verify=false", "--vault-mount=k8s", "--tls-dir=/tls",
		"--allowed-vault-addrs=https://a, https://b", "--allowed-vault-addrs=https://c", "--vault-aws-server-id=v", "--vault-aws-key-delay=0s",
		"--provider-name=vault", "--provider-name=tenure",
		"--aws-region=us-east-1", "--aws-sts-endpoint=https://sts", "--aws-fips", "--aws-pod-identity-agent=http://[::1]", "--cluster-name=prod",
	}, env, nil)
	require.NoError(t, err)
	require.Equal(t, vaultFlags{
		addrs: []string{"https://flag", "https://flag2", "https://flag3"}, caCert: "/flag/ca", caDir: "/flag/cas", clientCert: "/flag/cert", clientKey: "/flag/key",
		serverName: "flag", namespace: "flag", mount: "k8s", tlsDir: "/tls",
		allowedAddrs: []string{"https://a", "https://b", "https://c"}, awsServerID: "v",
	}, c.vault, "a flag overrides the environment")
	require.Equal(t, []string{"vault", "tenure"}, c.providers)
	require.Equal(t, awsFlags{region: "us-east-1", stsEndpoint: "https://sts", fips: true, agent: "http://[::1]", cluster: "prod"}, c.aws)
}

func TestVolumeBudget(t *testing.T) {
	for text, want := range map[string]int64{"8388608": 8 << 20, "64Mi": 64 << 20, "2Gi": 2 << 30, "16384Ki": 16 << 20} {
		c, err := parseConfig([]string{"--volume-budget=" + text}, nil, nil)
		require.NoError(t, err)
		require.Equal(t, want, c.volumeBudget)
	}
	for _, text := range []string{"", "0", "7Mi", "-64Mi", "64M", "1.5Gi", "99999999999Gi", "Mi"} {
		_, err := parseConfig([]string{"--volume-budget=" + text}, nil, io.Discard)
		require.ErrorContains(t, err, "it is no size of at least 8Mi; write it like 64Mi", text)
	}
}

func TestDivideMemory(t *testing.T) {
	for _, row := range []struct {
		name                   string
		limit, machine, budget int64
		want                   memory
	}{
		{"the chart's limit", 512 << 20, 16 << 30, 0, memory{files: 256 << 20, process: 176 << 20}},
		{"a budget", 1 << 30, 16 << 30, 64 << 20, memory{files: 64 << 20, process: (1024 - 64 - 16 - 32) << 20}},
		{"a budget that leaves nothing", 512 << 20, 16 << 30, 512 << 20, memory{files: 512 << 20, process: 32 << 20}},
		{"no limit", 0, 16 << 30, 0, memory{files: 1 << 30}},
		{"no limit, a budget", 0, 16 << 30, 64 << 20, memory{files: 64 << 20}},
	} {
		require.Equal(t, row.want, divideMemory(row.limit, row.machine, row.budget), row.name)
	}
	_, machine := memoryLimit()
	require.Greater(t, machine, int64(64<<20))
}

func TestBadConfigurations(t *testing.T) {
	for _, row := range []struct {
		name string
		args []string
		env  []string
		want []string
	}{
		{"provider name", []string{"--provider-name=a.b"}, nil, []string{
			`--provider-name "a.b" is no name that the driver accepts; use 1 to 30 of a-z, A-Z, 0-9, _ and -`,
		}},
		{"empty provider name", []string{"--provider-name="}, nil, []string{
			`--provider-name "" is no name that the driver accepts; use 1 to 30 of a-z, A-Z, 0-9, _ and -`,
		}},
		{"provider name twice", []string{"--provider-name=a,b,a"}, nil, []string{
			`--provider-name "a" is given twice; give it once`,
		}},
		{"health address", []string{"--health-addr=8080"}, nil, []string{
			`--health-addr "8080" is no host:port; write for example 127.0.0.1:8080, or leave it empty to serve none`,
		}},
		{"half a client certificate", []string{"--vault-tls-client-cert=/c"}, nil, []string{
			`--vault-tls-client-cert and --vault-tls-client-key belong together, but only one is set; set both or none`,
		}},
		{"key delay", []string{"--vault-aws-key-delay=30s"}, nil, []string{
			`--vault-aws-key-delay 30s is not from 0s to 20s; a pod waits that long for its first key`,
		}},
		{"pods without a node", []string{"--kube-pods"}, nil, []string{
			`--kube-pods needs --node-name, so that only this node's pods are followed; set it to the pod's spec.nodeName`,
		}},
		{"SPCs without pods", []string{"--kube-spcs", "--node-name=n"}, nil, []string{
			`--kube-spcs needs --kube-pods, as a pod's volumeAttributes override the SecretProviderClass; set both`,
		}},
		{"token", nil, []string{"VAULT_TOKEN=hvs.canary"}, []string{
			`VAULT_TOKEN is set, but pods log in with their own identity and a token of the daemon's would be used for nobody; unset it`,
		}},
		{
			"all at once",
			[]string{"--providers-dir=p", "--kubelet-root-dir=", "--state-dir=./s", "--log-level=loud", "--log-format=xml"},
			[]string{"VAULT_SKIP_VERIFY=maybe"},
			[]string{
				`VAULT_SKIP_VERIFY="maybe" is not a boolean; set true or false`,
				`--providers-dir "p" is not an absolute path; start it with /`,
				`--kubelet-root-dir "" is not an absolute path; start it with /`,
				`--state-dir "./s" is not an absolute path; start it with /`,
				`--log-level "loud" is not known; use debug, info, warn or error`,
				`--log-format "xml" is not known; use text or json`,
			},
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			_, err := parseConfig(row.args, row.env, nil)
			require.EqualError(t, err, strings.Join(row.want, "\n"))
		})
	}
}

func TestOpenReportsAllProblemsAtOnce(t *testing.T) {
	short := filepath.Join(t.TempDir(), "key")
	require.NoError(t, os.WriteFile(short, []byte("fifteen letters\n"), 0o600))
	c, err := parseConfig([]string{"--vault-addr=ftp://vault", "--version-key-file=" + short}, nil, nil)
	require.NoError(t, err)

	err = run(t.Context(), c, c.logger(&bytes.Buffer{}))
	require.ErrorContains(t, err, `reading Vault address "ftp://vault": `)
	require.ErrorContains(t, err, "\nreading --version-key-file: "+short+" holds 15 bytes, and a key needs at least 16; write for example 32 random letters into it")
}

func TestVersionKey(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "key")
	require.NoError(t, os.WriteFile(file, []byte("0123456789abcdef\n"), 0o600))
	key, err := readVersionKey(file)
	require.NoError(t, err)
	require.Equal(t, "0123456789abcdef", string(key), "an editor's newline is no part of the key")

	own, err := nodeVersionKey(dir)
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(own), minVersionKey)
	again, err := nodeVersionKey(dir)
	require.NoError(t, err)
	require.Equal(t, own, again, "a restart changes no version")
	info, err := os.Stat(filepath.Join(dir, "version-key"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode())

	require.NoError(t, os.WriteFile(filepath.Join(dir, "version-key"), []byte("cut"), 0o600))
	renewed, err := nodeVersionKey(dir)
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(renewed), minVersionKey, "a key that is too short is not used")

	_, err = nodeVersionKey(filepath.Join(dir, "none"))
	require.ErrorContains(t, err, "writing the node's version key: ")
}

func TestLogger(t *testing.T) {
	c, err := parseConfig([]string{"--log-format=json", "--log-level=warn"}, nil, nil)
	require.NoError(t, err)
	var out bytes.Buffer
	log := c.logger(&out)
	log.Info("below the level")
	log.Warn("shown", "key", "value")
	var line map[string]any
	require.NoError(t, json.Unmarshal(out.Bytes(), &line), "one line, in JSON")
	require.Equal(t, "shown", line["msg"])
	require.Equal(t, "value", line["key"])
}

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// node is the part of a node that one or more daemons share.
type node struct{ root, state, providers, kubelet string }

func newNode(t *testing.T) node {
	t.Helper()
	const tmpfs = "/dev/shm"
	if _, err := os.Stat(tmpfs); err != nil {
		t.Skipf("needs a tmpfs at %s: %v", tmpfs, err)
	}
	root, err := os.MkdirTemp(tmpfs, "tenure") // short: a socket's path has 107 bytes
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(root)) })
	n := node{root, filepath.Join(root, "state"), filepath.Join(root, "providers"), filepath.Join(root, "kubelet")}
	for _, dir := range []string{n.providers, filepath.Join(n.kubelet, "pods")} {
		require.NoError(t, os.MkdirAll(dir, 0o755))
	}
	return n
}

func (n node) flags(more ...string) []string {
	return append([]string{
		"serve", "--log-format=json", "--health-addr=127.0.0.1:0", "--vault-addr=http://127.0.0.1:1",
		"--state-dir=" + n.state, "--providers-dir=" + n.providers, "--kubelet-root-dir=" + n.kubelet,
	}, more...)
}

func (n node) statusSocket() string { return filepath.Join(n.state, "status.sock") }

// process is a running daemon, followed by its log.
type process struct {
	*exec.Cmd
	log *bufio.Scanner
}

func start(t *testing.T, env, args []string) *process {
	t.Helper()
	cmd := tenure(t, env, args...)
	stderr, err := cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	return &process{cmd, bufio.NewScanner(stderr)}
}

// until reads the log up to the line with this message and returns that line.
func (p *process) until(t *testing.T, msg string) map[string]any {
	t.Helper()
	var seen strings.Builder
	for p.log.Scan() {
		seen.Write(append(p.log.Bytes(), '\n'))
		var line map[string]any
		require.NoError(t, json.Unmarshal(p.log.Bytes(), &line), seen.String())
		if line["msg"] == msg {
			return line
		}
	}
	require.Fail(t, "the log ended", "without %q:\n%s", msg, seen.String())
	return nil
}

// stop sends SIGTERM and returns the rest of the log.
func (p *process) stop(t *testing.T) string {
	t.Helper()
	require.NoError(t, p.Process.Signal(syscall.SIGTERM))
	var rest strings.Builder
	for p.log.Scan() {
		rest.Write(append(p.log.Bytes(), '\n'))
	}
	require.NoError(t, p.Wait(), "SIGTERM is an ordinary end:\n%s", rest.String())
	return rest.String()
}

func get(t *testing.T, address, path string) (int, string) {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + address + path)
	require.NoError(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp.StatusCode, string(body)
}

func TestServeAndStop(t *testing.T) {
	n := newNode(t)
	p := start(t, []string{"VAULT_FORMAT=json"}, n.flags("--provider-name=tenure,vault"))
	require.Equal(t, "VAULT_FORMAT", p.until(t, "ignoring an environment variable that means nothing here")["name"])
	health := p.until(t, "serving health and metrics")["address"].(string)
	p.until(t, "serving status")
	sockets := []string{
		p.until(t, "serving the CSI driver")["socket"].(string),
		p.until(t, "serving the CSI driver")["socket"].(string),
		n.statusSocket(),
	}
	require.Equal(t, filepath.Join(n.providers, "tenure.sock"), sockets[0])
	require.Equal(t, filepath.Join(n.providers, "vault.sock"), sockets[1])
	for _, path := range sockets {
		conn, err := net.Dial("unix", path)
		require.NoError(t, err)
		require.NoError(t, conn.Close())
	}

	code, body := get(t, health, "/readyz")
	require.Equal(t, http.StatusOK, code, body)
	_, body = get(t, health, "/metrics")
	require.Regexp(t, `(?m)^tenure_build_info\{version="[^"]+"\} 1$`, body)
	require.Contains(t, body, `tenure_mount_panics_total{provider="vault"} 0`)

	out, err := tenure(t, nil, "status", "--status-socket", n.statusSocket()).CombinedOutput()
	require.NoError(t, err, string(out))
	require.Regexp(t, `^\S+ \S+ UTC: 0 volumes, 0 leases, 0 ends owed to the backend\n$`, string(out))
	out, err = tenure(t, nil, "status", "-o", "json", "--status-socket", n.statusSocket()).CombinedOutput()
	require.NoError(t, err)
	require.JSONEq(t, "[]", string(out))

	rest := p.stop(t)
	require.Contains(t, rest, `"msg":"stopped"`)
	for _, path := range sockets {
		require.NoFileExists(t, path)
	}
}

func TestSecondInstanceWaits(t *testing.T) {
	n := newNode(t)
	first := start(t, nil, n.flags())
	first.until(t, "serving the CSI driver")
	second, third := start(t, nil, n.flags()), start(t, nil, n.flags())
	health := second.until(t, "serving health and metrics")["address"].(string)
	second.until(t, "another process holds the state directory: waiting until it ends")
	third.until(t, "another process holds the state directory: waiting until it ends")
	code, _ := get(t, health, "/healthz")
	require.Equal(t, http.StatusOK, code, "one that waits must not be killed for it")
	code, body := get(t, health, "/readyz")
	require.Equal(t, http.StatusServiceUnavailable, code)
	require.Equal(t, "waiting for the state directory, which another instance holds\n", body)

	third.stop(t) // a waiting one ends at once
	first.stop(t)
	second.until(t, "serving the CSI driver")
	code, body = get(t, health, "/readyz")
	require.Equal(t, http.StatusOK, code, body)
	second.stop(t)
}

func TestServeRefuses(t *testing.T) {
	for _, row := range []struct {
		name string
		flag func(n node) string
		want func(n node) string
	}{
		{
			"state on a disk",
			func(node) string { return "--state-dir=/proc/self" },
			func(node) string {
				return "using the state directory /proc/self: it is not on a tmpfs, and Vault tokens must not reach a disk; choose one below /run, or mount a tmpfs there"
			},
		},
		{
			"no providers directory",
			func(n node) string { return "--providers-dir=" + n.root + "/none" },
			func(n node) string {
				return "listening for the CSI driver: providers directory: stat " + n.root + "/none: no such file or directory; mount the directory that the driver watches"
			},
		},
		{
			"second of two sockets",
			func(n node) string {
				require.NoError(t, os.WriteFile(filepath.Join(n.providers, "b.sock"), nil, 0o600))
				return "--provider-name=a,b"
			},
			func(n node) string {
				return "listening for the CSI driver: " + n.providers + "/b.sock is there and no socket; remove it"
			},
		},
		{
			"health address of another host",
			func(node) string { return "--health-addr=192.0.2.1:1" },
			func(node) string {
				return "listening for health checks: listen tcp 192.0.2.1:1: bind: cannot assign requested address; choose another --health-addr, or leave it empty"
			},
		},
		{
			"Kubernetes outside a cluster",
			func(node) string { return "--kube-events" },
			func(node) string {
				return "finding the Kubernetes API: unable to load in-cluster configuration, KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT must be defined; " +
					"run as a pod with a service account token, give --kubeconfig, or leave the --kube flags out"
			},
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			n := newNode(t)
			var stderr strings.Builder
			args := n.flags("--log-level=error", row.flag(n))
			require.Equal(t, exitFailed, command(context.Background(), args, io.Discard, &stderr))
			require.Equal(t, "tenure serve: "+row.want(n)+"\n", stderr.String())
			require.NoFileExists(t, filepath.Join(n.providers, "a.sock"), "nothing is served by half")
			require.NoFileExists(t, n.statusSocket())
		})
	}
}

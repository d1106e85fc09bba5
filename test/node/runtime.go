package node

import (
	"context"
	"crypto/rand"
	_ "embed"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"strings"

	core "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const containerdSocket = "/run/containerd/containerd.sock"

//go:embed containerd.toml
var containerdConfig []byte

//go:embed kubelet.yaml
var kubeletConfig []byte

// cni is where containerd looks for networks, as containerd.toml has it.
const cni = "/run/cni"

// network gives each pod without hostNetwork an address, and a wire to the node.
const network = `{"cniVersion": "0.4.0", "name": "pods", "plugins": [{"type": "ptp",
"ipam": {"type": "host-local", "ranges": [[{"subnet": "192.168.77.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}`

// startContainerd starts containerd and gives it the image that holds a pod's
// namespaces.
func (n *Node) startContainerd(ctx context.Context) error {
	if err := writeFile(etc+"/containerd.toml", containerdConfig); err != nil {
		return err
	}
	if err := writeFile(cni+"/pods.conflist", []byte(network)); err != nil {
		return err
	}
	n.containerd = &Part{
		name: "containerd",
		make: func() *exec.Cmd { return program("containerd", "--config="+etc+"/containerd.toml") },
		ready: func(ctx context.Context) error {
			_, err := n.ctr(ctx, "version")
			return err
		},
	}
	if err := n.start(ctx, n.containerd); err != nil {
		return err
	}
	return n.Import(ctx, Image{
		Name: "localhost/pause:1", Files: map[string]string{"/busybox": "/bin/busybox"}, Libraries: true,
		Entrypoint: []string{"/busybox", "sleep", "2147483647"},
	})
}

// ctr runs containerd's own client in the namespace of Kubernetes' containers.
func (n *Node) ctr(ctx context.Context, args ...string) (string, error) {
	args = append([]string{"--address=" + containerdSocket, "--namespace=k8s.io"}, args...)
	out, err := exec.CommandContext(ctx, "ctr", args...).CombinedOutput() //nolint:gosec // the tests' own arguments
	if err != nil {
		return string(out), fmt.Errorf("running ctr %s: %w: %s", args[2], err, strings.TrimSpace(string(out)))
	}
	return string(out), nil
}

// complete is what comes after a command's own output: ctr now and then loses
// that of a short command.
const complete = "(the output is complete)\n"

// Exec runs a command in a container of a running pod, as the container's user,
// and answers its output. The image needs a shell. Where the output is lost, the
// command is run again.
func (n *Node) Exec(ctx context.Context, pod *core.Pod, container string, argv ...string) (string, error) {
	const tries = 5
	id, err := containerID(pod, container)
	if err != nil {
		return "", fmt.Errorf("running a command in %s: %w", pod.Name, err)
	}
	for range tries {
		args := []string{"tasks", "exec", "--exec-id", rand.Text(), id, "sh", "-c", `"$@" && printf %s "$0"`, complete}
		out, err := n.ctr(ctx, append(args, argv...)...)
		if err != nil {
			return out, err
		}
		if before, after, ok := strings.Cut(out, complete); ok {
			return before + after, nil
		}
	}
	return "", fmt.Errorf("running a command in %s: its output was lost %d times", pod.Name, tries)
}

// containerID answers what containerd calls a container of a pod.
func containerID(pod *core.Pod, container string) (string, error) {
	for _, s := range pod.Status.ContainerStatuses {
		if id, ok := strings.CutPrefix(s.ContainerID, "containerd://"); ok && s.Name == container {
			return id, nil
		}
	}
	return "", fmt.Errorf("finding the container %s: it has no known id", container)
}

// startKubelet starts kubelet and waits until the node is Ready.
func (n *Node) startKubelet(ctx context.Context) error {
	if err := writeFile(etc+"/kubelet.yaml", kubeletConfig); err != nil {
		return err
	}
	n.Kubelet = &Part{
		name: "kubelet",
		make: func() *exec.Cmd {
			return n.kube("kubelet", "--config="+etc+"/kubelet.yaml", "--kubeconfig="+etc+"/kubelet.conf", "--node-ip="+address.String(), "--v=2")
		},
		ready: n.nodeReady,
	}
	return n.start(ctx, n.Kubelet)
}

// nodeReady succeeds when kubelet serves and the node is Ready.
func (n *Node) nodeReady(ctx context.Context) error {
	if err := get(ctx, http.DefaultClient, "http://127.0.0.1:10248/healthz"); err != nil { // kubelet's default address
		return err
	}
	var node core.Node
	if err := n.Client.Get(ctx, client.ObjectKey{Name: Name}, &node); err != nil {
		return err
	}
	for _, c := range node.Status.Conditions {
		if c.Type == core.NodeReady {
			if c.Status == core.ConditionTrue {
				return nil
			}
			return errors.New(c.Message)
		}
	}
	return errors.New("the node says nothing of its readiness")
}

package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tenure-csi/tenure/test/fixture"
)

// Name is the node's name, in Kubernetes and as a host.
const Name = "node-1"

// Kubeconfig is the administrator's, inside the node's namespaces.
const Kubeconfig = etc + "/admin.conf"

// etc is where the parts have their configuration.
const etc = "/run/kubernetes"

// URL is kube-apiserver's address for everybody on the node. Pods call it by the
// address of the service `kubernetes`, which is the node's too (see address), and
// by that service's port.
const URL = "https://127.0.0.1:443"

// address is the node's own beside loopback: any that is not a loopback one will
// do, because nothing but the node and its pods is in its network. One in 10/8
// makes all of 10/8 the node's, by the mask that its class gives it: so the
// service at 10.96.0.1 needs no kube-proxy.
var address = netip.AddrFrom4([4]byte{10, 77, 0, 1})

// startTime is how long a part may take to be ready on a busy machine.
const startTime = 2 * time.Minute

// Options say how the node is set up.
type Options struct {
	// Progress is told in a few words what is started; nil: nobody.
	Progress func(what string)

	// What [Node.SetDriver] sets; Start does not look at it.

	// NoRotation switches the driver's secret rotation off, as its chart does by default.
	NoRotation bool
	// Audiences are whom the pods' tokens are for that the driver hands to
	// providers; nil: Audience alone, empty: it gets no tokens.
	Audiences []string
}

// Node is a running node. Its methods may be called by several goroutines, but
// for those that start or stop parts.
type Node struct {
	Client client.Client // as administrator

	// The parts that tests stop and start again.
	APIServer, Kubelet *Part
	Driver             *Driver // there is one after Install

	containerd *Part

	authority *authority
	bin       string
	tenure    reference // of `make image`
	chart     string    // that Install has installed
	stops     []func() error
}

// logs names a directory outside of the namespaces that keeps the parts' logs;
// empty: they are not kept.
const logs = "TENURE_TEST_NODE_LOGS"

func (p *Part) keepLog() error {
	dir := os.Getenv(logs)
	if dir == "" {
		return nil
	}
	return writeFile(filepath.Join(dir, p.name+".log"), []byte(p.run.Logs()))
}

// keepPodLogs keeps the logs of the pods that there still are.
func keepPodLogs() error {
	dir := os.Getenv(logs)
	if dir == "" {
		return nil
	}
	dir = filepath.Join(dir, "pods")
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("removing the last run's logs: %w", err)
	}
	if err := os.CopyFS(dir, os.DirFS("/var/log/pods")); err != nil && !errors.Is(err, fs.ErrNotExist) { // kubelet makes it
		return fmt.Errorf("keeping the pods' logs: %w", err)
	}
	return nil
}

// CA answers the certificate, in PEM, of the authority that signed kube-apiserver's.
func (n *Node) CA() string { return string(n.authority.pem) }

// Part is a program of the node. Its methods are for one goroutine.
type Part struct {
	name  string
	make  func() *exec.Cmd
	ready func(context.Context) error
	run   *fixture.Command
}

// Start starts the part and waits until it is ready.
func (p *Part) Start(ctx context.Context) error {
	var err error
	if p.run, err = fixture.StartProgram(p.make()); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	if err := p.run.AwaitReady(ctx, p.ready); err != nil {
		return fmt.Errorf("starting %s: %w", p.name, err)
	}
	return nil
}

// Kill ends the part as a crash would; Start brings it back.
func (p *Part) Kill() error { return p.run.Kill() }

// Logs answers what the part wrote since its last start.
func (p *Part) Logs() string { return p.run.Logs() }

// Start brings the node up: it is Ready, takes pods, and has the images that
// [Node.Install] needs. Call it in the working run of [Isolate] only.
func Start(ctx context.Context, o Options) (_ *Node, err error) {
	if os.Getenv(stage) != working {
		return nil, errors.New("starting the node: not in namespaces of its own; call Isolate first")
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	root, err := fixture.Root()
	if err != nil {
		return nil, err
	}
	n := &Node{bin: filepath.Join(root, "bin")}
	n.Driver = &Driver{node: n}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.Stop())
		}
	}()
	for _, step := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"certificates", n.writeKeys},
		{"etcd", n.startEtcd},
		{"kube-apiserver", n.startAPIServer},
		{"kube-controller-manager", n.startControllers},
		{"kube-scheduler", n.startScheduler},
		{"containerd", n.startContainerd},
		{"kubelet", n.startKubelet},
		{"images", n.importImages},
	} {
		o.Progress(step.what)
		if err := step.do(ctx); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// Stop ends every part, the newest first. Containers end with the namespaces.
func (n *Node) Stop() error {
	var errs []error
	for i := len(n.stops) - 1; i >= 0; i-- {
		errs = append(errs, n.stops[i]())
	}
	n.stops = nil
	return errors.Join(append(errs, keepPodLogs())...) // now nobody removes them any more
}

// start starts a part that is stopped with the node.
func (n *Node) start(ctx context.Context, p *Part) error {
	n.stops = append(n.stops, func() error {
		if p.run == nil {
			return nil
		}
		return errors.Join(p.run.Kill(), p.keepLog()) // nothing else of it is to last
	})
	return p.Start(ctx)
}

// environment is that of all programs of the node.
var environment = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/run", "TMPDIR=" + scratch}

// program answers a command that outlives the call that makes it.
func program(path string, args ...string) *exec.Cmd {
	cmd := exec.Command(path, args...) //nolint:gosec,noctx // the node's own parts
	cmd.Dir = "/run"
	cmd.Env = append(cmd.Env, environment...)
	return cmd
}

// kube answers a command of the program that is Kubernetes.
func (n *Node) kube(part string, args ...string) *exec.Cmd {
	return program(filepath.Join(n.bin, "kube"), append([]string{part}, args...)...)
}

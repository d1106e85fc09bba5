package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	storage "k8s.io/api/storage/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// DriverName is the name of the Secrets Store CSI driver.
const DriverName = "secrets-store.csi.k8s.io"

// Audience is whom the pods' tokens are for where [Options] do not say.
const Audience = "vault"

const (
	// Release is the name of the Helm release that is Tenure and the driver.
	Release = "tenure"
	// ReleaseNamespace is the namespace that the chart's documentation names.
	ReleaseNamespace = "kube-system"

	subchart        = "secrets-store-csi-driver"
	driverContainer = "secrets-store"
	driverSocket    = "/var/lib/kubelet/plugins/csi-secrets-store/csi.sock"
)

// withDriver switches the driver's chart on. Where providers were before is no
// further directory here: that is in /etc, which is this machine's.
const withDriver = "--set=" + subchart + ".install=true," + subchart + ".linux.additionalProvidersDirs={/var/run/secrets-store-csi-providers}"

// Install installs Tenure's chart and with it the driver's, with values (YAML), by
// the one command that users run, and waits until kubelet knows the driver.
func (n *Node) Install(ctx context.Context, chart, values string) error {
	n.chart = chart
	_, err := n.Helm(ctx, values, "install", Release, chart, "--namespace="+ReleaseNamespace,
		"--set=image.repository="+n.tenure.repository+",image.tag="+n.tenure.tag, withDriver, "--values=-")
	if err != nil {
		return err
	}
	return n.Driver.Start(ctx)
}

// SetDriver upgrades the release to what the options say of the driver, and waits
// until it runs so. Other values stay.
func (n *Node) SetDriver(ctx context.Context, o Options) error {
	if o.Audiences == nil {
		o.Audiences = []string{Audience}
	}
	requests := []storage.TokenRequest{}
	for _, audience := range o.Audiences {
		requests = append(requests, storage.TokenRequest{Audience: audience})
	}
	values, err := json.Marshal(map[string]any{"enableSecretRotation": !o.NoRotation, "tokenRequests": requests})
	if err != nil {
		return fmt.Errorf("writing the driver's values: %w", err)
	}
	// Its hooks apply the types, which stay the same, and take 8 s on a busy machine.
	_, err = n.Helm(ctx, "", "upgrade", Release, n.chart, "--namespace="+ReleaseNamespace, "--reuse-values", "--no-hooks",
		"--set-json="+subchart+"="+string(values))
	if err != nil {
		return err
	}
	return n.Driver.Start(ctx)
}

// SetRotation switches the driver's secret rotation on or off; its pod is replaced.
func (n *Node) SetRotation(ctx context.Context, on bool) error {
	return n.SetDriver(ctx, Options{NoRotation: !on})
}

// Driver is the driver's pod on the node. Its methods are for one goroutine.
type Driver struct {
	node   *Node
	killed string // container
}

// Pod answers the pod; while one replaces the other, it fails.
func (d *Driver) Pod(ctx context.Context) (*core.Pod, error) {
	var list core.PodList
	if err := d.node.Client.List(ctx, &list, client.InNamespace(ReleaseNamespace), client.MatchingLabels{"app": subchart}); err != nil {
		return nil, err
	}
	if len(list.Items) != 1 {
		return nil, fmt.Errorf("finding the driver's pod: there are %d", len(list.Items))
	}
	return &list.Items[0], nil
}

// Kill ends the driver's process as a crash would. Kubelet starts it again: the
// first time at once, then 10 s later, and the later the more often it happens to
// the same pod.
func (d *Driver) Kill() error {
	ctx, cancel := context.WithTimeout(context.Background(), startTime)
	defer cancel()
	pod, err := d.Pod(ctx)
	if err != nil {
		return err
	}
	if d.killed, err = containerID(pod, driverContainer); err != nil {
		return err
	}
	_, err = d.node.ctr(ctx, "tasks", "kill", "--signal=SIGKILL", d.killed)
	return err
}

// Start waits until the driver runs, after Kill or whatever else ended it: it is
// kubelet that starts it.
func (d *Driver) Start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		err := d.ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("starting the driver: %w; last: %w", context.Cause(ctx), err)
		}
	}
}

// ready succeeds when the pod is what the release says, the driver takes
// connections, and kubelet knows it.
func (d *Driver) ready(ctx context.Context) error {
	var set apps.DaemonSet
	if err := d.node.Client.Get(ctx, client.ObjectKey{Namespace: ReleaseNamespace, Name: Release + "-" + subchart}, &set); err != nil {
		return err
	}
	if s := set.Status; s.NumberReady != 1 || s.UpdatedNumberScheduled != 1 || s.ObservedGeneration != set.Generation {
		return fmt.Errorf("the driver's pod is not ready: %+v", s)
	}
	pod, err := d.Pod(ctx)
	if err != nil {
		return err
	}
	switch id, err := containerID(pod, driverContainer); {
	case err != nil:
		return err
	case id == d.killed:
		return errors.New("kubelet has not started the driver's container again")
	}
	conn, err := new(net.Dialer).DialContext(ctx, "unix", driverSocket)
	if err != nil {
		return err
	}
	if err := conn.Close(); err != nil {
		return err
	}
	var node storage.CSINode
	if err := d.node.Client.Get(ctx, client.ObjectKey{Name: Name}, &node); err != nil {
		return err
	}
	if !slices.ContainsFunc(node.Spec.Drivers, func(d storage.CSINodeDriver) bool { return d.Name == DriverName }) {
		return errors.New("kubelet does not know the driver yet")
	}
	return nil
}

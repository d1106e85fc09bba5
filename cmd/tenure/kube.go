package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"sync"

	"k8s.io/client-go/dynamic"
	"k8s.io/klog/v2"

	"github.com/tenure-csi/tenure/internal/kube"
	"github.com/tenure-csi/tenure/internal/lease"
)

// kubeFlags say what of the Kubernetes API may be used: each needs a permission.
type kubeFlags struct {
	events, pods, spcs, status, tokens bool
	node                               string // the name of this node's object
	config                             string // kubeconfig file; empty: the pod's service account
}

func (k *kubeFlags) defineFlags(f *flag.FlagSet) {
	f.BoolVar(&k.events, "kube-events", false, "write Events on pods for what no Mount tells: failing rotations, expired credentials, edits that can't be\ncarried out; needs to create events")
	f.BoolVar(&k.pods, "kube-pods", false, "follow this node's pods: a volume's end is known sooner; needs to get, list and watch pods, and --node-name")
	f.BoolVar(&k.spcs, "kube-spcs", false, "follow SecretProviderClasses: an edit reaches running pods in seconds; needs to list and watch them, and --kube-pods")
	f.BoolVar(&k.status, "kube-status", false, "record new versions after a rotation, so that synced Kubernetes Secrets follow at once;\nneeds to get and update secretproviderclasspodstatuses")
	f.BoolVar(&k.tokens, "kube-token-requests", false, "ask for a pod's token where a replacement needs one and the last Mount's is stale;\nneeds to create serviceaccounts/token")
	f.StringVar(&k.node, "node-name", "", "`name` of this node in Kubernetes")
	f.StringVar(&k.config, "kubeconfig", "", "kubeconfig `file` of the Kubernetes API, for the --kube flags (default the pod's service account)")
}

func (k *kubeFlags) check(problem func(format string, args ...any)) {
	if k.pods && k.node == "" {
		problem("--kube-pods needs --node-name, so that only this node's pods are followed; set it to the pod's spec.nodeName")
	}
	if k.spcs && !k.pods {
		problem("--kube-spcs needs --kube-pods, as a pod's volumeAttributes override the SecretProviderClass; set both")
	}
}

// cluster is the part of the daemon that uses the Kubernetes API.
type cluster struct {
	lease.Cluster
	work   sync.WaitGroup
	cancel context.CancelFunc
	start  []func(*lease.Manager) // what goes on until close
}

// connect makes what the flags ask for. It makes no call: an API server that is
// away, or forbids something, keeps nothing else from working.
func (k *kubeFlags) connect(ctx context.Context, log *slog.Logger) (*cluster, error) {
	ctx, cancel := context.WithCancel(ctx)
	c := &cluster{cancel: cancel}
	if !k.events && !k.pods && !k.spcs && !k.status && !k.tokens {
		return c, nil
	}
	klog.SetSlogLogger(log) // the client's own warnings
	client, err := kube.Connect(k.config)
	if err != nil {
		cancel()
		return nil, fmt.Errorf("%w; run as a pod with a service account token, give --kubeconfig, or leave the --kube flags out", err)
	}
	log.Info("using the Kubernetes API", "events", k.events, "pods", k.pods, "spcs", k.spcs, "status", k.status, "token_requests", k.tokens)
	k.add(ctx, c, client, log)
	return c, nil
}

func (k *kubeFlags) add(ctx context.Context, c *cluster, client dynamic.Interface, log *slog.Logger) {
	if k.events {
		events := kube.NewEvents(client, k.node, log)
		c.Events = events
		c.start = append(c.start, func(*lease.Manager) { events.Run(ctx) })
	}
	if k.tokens {
		c.Identities = kube.Tokens{Client: client}
	}
	if k.status {
		statuses := kube.NewStatuses(client, log)
		c.Statuses = statuses
		c.start = append(c.start, func(*lease.Manager) { statuses.Run(ctx) })
	}
	if !k.pods {
		return
	}
	pods := kube.NewPods(ctx, client, k.node, log)
	c.Pods = pods
	c.start = append(c.start, func(*lease.Manager) { pods.Run() })
	if k.spcs {
		c.start = append(c.start, func(m *lease.Manager) { kube.NewSPCs(ctx, client, pods, m.Edit).Run() })
	}
}

// run begins what goes on until close.
func (c *cluster) run(m *lease.Manager) {
	for _, follow := range c.start {
		c.work.Go(func() { follow(m) })
	}
}

// close ends what run began.
func (c *cluster) close() {
	c.cancel()
	c.work.Wait()
}

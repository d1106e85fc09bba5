// Package node runs a real Kubernetes node on this machine: etcd, kube-apiserver,
// kube-controller-manager, kube-scheduler, containerd with runc, kubelet, and the
// Secrets Store CSI driver's own binary, all as processes, in namespaces of their
// own. Their paths and ports are the usual ones, because nobody else sees them:
// what is mounted, listens or runs there is gone when its first process ends,
// however that comes about.
//
// It needs root, and what `make node` builds and installs. There is no network but
// loopback: pods have hostNetwork, and their images are made of this machine's
// files (see [Image]).
//
// What is not as in a cluster of its own: one node, no kube-proxy, no DNS, and the
// driver beside kubelet, not in a pod.
package node

// Package node runs a real Kubernetes node on this machine: etcd, kube-apiserver,
// kube-controller-manager, kube-scheduler, containerd with runc, and kubelet as
// processes in namespaces of their own, and Tenure with the Secrets Store CSI
// driver in pods, as Helm installs them. Paths and ports are the usual ones,
// because nobody else sees them: what is mounted, listens or runs there is gone
// when its first process ends, however that comes about.
//
// It needs root, and what `make node` builds and installs. The only networks are
// loopback and a wire to each pod without hostNetwork, and images are made of this
// machine's files (see [Image]).
//
// What is not as in a cluster of its own: one node, no kube-proxy, no DNS, and
// the driver's two sidecars are stand-ins.
package node

package node

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"os/exec"

	authentication "k8s.io/api/authentication/v1"
	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	kubeconfig "k8s.io/client-go/tools/clientcmd/api/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	driver "sigs.k8s.io/secrets-store-csi-driver/apis/v1"
)

const etcdURL = "http://127.0.0.1:2379"

// serviceIssuer is the iss claim of service account tokens, and their audience
// where a pod asks for none.
const serviceIssuer = "https://kubernetes.default.svc.cluster.local"

// users are those who call kube-apiserver, with the names and groups that its
// default roles know. The kubeconfig has the same name.
var users = map[string]struct {
	name   string
	groups []string
}{
	"admin":                   {"admin", []string{"system:masters"}},
	"kubelet":                 {"system:node:" + Name, []string{"system:nodes"}},
	"kube-controller-manager": {"system:kube-controller-manager", nil},
	"kube-scheduler":          {"system:kube-scheduler", nil},
}

// writeKeys makes the cluster's CA and writes what the parts need of it.
func (n *Node) writeKeys(context.Context) error {
	var err error
	if n.authority, err = newAuthority(); err != nil {
		return err
	}
	server, err := n.authority.server()
	if err != nil {
		return err
	}
	files := map[string][]byte{"ca.crt": n.authority.pem, "key.pem": n.authority.keyPEM, "apiserver.crt": server}
	for file, user := range users {
		cert, err := n.authority.client(user.name, user.groups...)
		if err != nil {
			return err
		}
		files[file+".crt"] = cert
		info := kubeconfig.AuthInfo{ClientCertificateData: cert, ClientKeyData: n.authority.keyPEM}
		if err := n.authority.writeKubeconfig(etc+"/"+file+".conf", info); err != nil {
			return err
		}
	}
	for name, content := range files {
		if err := writeFile(etc+"/"+name, content); err != nil {
			return err
		}
	}
	return nil
}

func (n *Node) startEtcd(ctx context.Context) error {
	return n.start(ctx, &Part{
		name: "etcd",
		make: func() *exec.Cmd {
			return program("etcd", "--data-dir=/var/lib/etcd", "--listen-client-urls="+etcdURL, "--advertise-client-urls="+etcdURL,
				"--listen-peer-urls=http://127.0.0.1:2380", "--log-level=warn")
		},
		ready: func(ctx context.Context) error { return get(ctx, http.DefaultClient, etcdURL+"/health") },
	})
}

func (n *Node) startAPIServer(ctx context.Context) error {
	n.APIServer = &Part{
		name: "kube-apiserver",
		make: func() *exec.Cmd {
			return n.kube("kube-apiserver",
				"--etcd-servers="+etcdURL,
				"--advertise-address="+address.String(), "--secure-port=443",
				"--service-cluster-ip-range=10.96.0.0/24",
				"--authorization-mode=Node,RBAC",
				"--allow-privileged=true",
				"--client-ca-file="+etc+"/ca.crt",
				"--tls-cert-file="+etc+"/apiserver.crt", "--tls-private-key-file="+etc+"/key.pem",
				"--kubelet-client-certificate="+etc+"/admin.crt", "--kubelet-client-key="+etc+"/key.pem",
				"--kubelet-preferred-address-types=InternalIP",
				"--service-account-issuer="+serviceIssuer,
				"--service-account-key-file="+etc+"/key.pem", "--service-account-signing-key-file="+etc+"/key.pem",
			)
		},
	}
	admin, err := n.restConfig()
	if err != nil {
		return err
	}
	web, err := rest.HTTPClientFor(admin)
	if err != nil {
		return fmt.Errorf("making kube-apiserver's client: %w", err)
	}
	n.APIServer.ready = func(ctx context.Context) error { return get(ctx, web, URL+"/readyz") }
	if err := n.start(ctx, n.APIServer); err != nil {
		return err
	}
	if err := driver.AddToScheme(scheme.Scheme); err != nil {
		return fmt.Errorf("making kube-apiserver's client: %w", err)
	}
	if n.Client, err = client.New(admin, client.Options{Scheme: scheme.Scheme}); err != nil {
		return fmt.Errorf("making kube-apiserver's client: %w", err)
	}
	return nil
}

// restConfig is the administrator's way to kube-apiserver, without a limit of its own on calls.
func (n *Node) restConfig() (*rest.Config, error) {
	cert, err := n.authority.client("admin", "system:masters")
	if err != nil {
		return nil, err
	}
	return &rest.Config{
		Host: URL, QPS: -1,
		TLSClientConfig: rest.TLSClientConfig{CAData: n.authority.pem, CertData: cert, KeyData: n.authority.keyPEM},
	}, nil
}

func (n *Node) startControllers(ctx context.Context) error {
	return n.start(ctx, &Part{
		name: "kube-controller-manager",
		make: func() *exec.Cmd {
			return n.kube("kube-controller-manager", "--kubeconfig="+etc+"/kube-controller-manager.conf", "--use-service-account-credentials", "--leader-elect=false",
				"--bind-address=127.0.0.1", "--root-ca-file="+etc+"/ca.crt", "--service-account-private-key-file="+etc+"/key.pem",
				"--flex-volume-plugin-dir=/var/lib/volume-plugins")
		},
		ready: healthz(10257),
	})
}

func (n *Node) startScheduler(ctx context.Context) error {
	return n.start(ctx, &Part{
		name: "kube-scheduler",
		make: func() *exec.Cmd {
			return n.kube("kube-scheduler", "--kubeconfig="+etc+"/kube-scheduler.conf", "--leader-elect=false", "--bind-address=127.0.0.1")
		},
		ready: healthz(10259),
	})
}

// Token answers a token of a service account for kube-apiserver itself.
func (n *Node) Token(ctx context.Context, namespace, account string) (string, error) {
	who := &core.ServiceAccount{ObjectMeta: meta.ObjectMeta{Namespace: namespace, Name: account}}
	seconds := int64(24 * 60 * 60)
	request := &authentication.TokenRequest{Spec: authentication.TokenRequestSpec{ExpirationSeconds: &seconds}}
	if err := n.Client.SubResource("token").Create(ctx, who, request); err != nil {
		return "", fmt.Errorf("making a token for %s: %w", account, err)
	}
	return request.Status.Token, nil
}

// healthz asks a part's /healthz. It is served on loopback with a certificate
// that the part has just made for itself, which nobody could check.
func healthz(port int) func(context.Context) error {
	web := &http.Client{Transport: &http.Transport{
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // see above
		DisableKeepAlives: true,
	}}
	return func(ctx context.Context) error {
		return get(ctx, web, fmt.Sprintf("https://127.0.0.1:%d/healthz", port))
	}
}

// get succeeds when the URL answers 200.
func get(ctx context.Context, web *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := web.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", url, resp.Status)
	}
	return nil
}

// Package kubeapi runs what uses the Kubernetes API against a real kube-apiserver
// and etcd, with the permissions of docs/kubernetes-permissions.md and no others.
// No kubelet runs: the tests make the objects that it, or the driver, would make.
package kubeapi

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/dynamic"

	"github.com/tenure-csi/tenure/internal/kube"
	"github.com/tenure-csi/tenure/test/fixture"
)

const namespace = "shop"

var (
	stack *fixture.Stack
	api   *server // nil: there is no kube-apiserver on this machine
	admin dynamic.Interface
)

var (
	namespaces = schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}
	pods       = schema.GroupVersionResource{Version: "v1", Resource: "pods"}
	events     = schema.GroupVersionResource{Version: "v1", Resource: "events"}
	accounts   = schema.GroupVersionResource{Version: "v1", Resource: "serviceaccounts"}
	roles      = schema.GroupVersionResource{Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "clusterroles"}
	bindings   = schema.GroupVersionResource{Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "clusterrolebindings"}
	crds       = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
	spcs       = schema.GroupVersionResource{Group: "secrets-store.csi.x-k8s.io", Version: "v1", Resource: "secretproviderclasses"}
	statuses   = schema.GroupVersionResource{Group: "secrets-store.csi.x-k8s.io", Version: "v1", Resource: "secretproviderclasspodstatuses"}
	reviews    = schema.GroupVersionResource{Group: "authentication.k8s.io", Version: "v1", Resource: "tokenreviews"}
)

func TestMain(m *testing.M) {
	os.Exit(fixture.Run(func() int {
		if err := start(); err != nil {
			fmt.Fprintln(os.Stderr, "starting kube-apiserver:", err)
			return 1
		}
		code := m.Run()
		if api != nil {
			if err := api.stop(); err != nil {
				fmt.Fprintln(os.Stderr, "stopping kube-apiserver:", err)
				code = 1
			}
		}
		return code
	}, func(s *fixture.Stack) { stack = s }, func() error { return goleak.Find() }))
}

// needAPI skips a test where the API server was not built.
func needAPI(t *testing.T) {
	t.Helper()
	if api == nil {
		t.Skip("NOT TESTED against a real Kubernetes API: it needs etcd (Debian etcd-server), and kube-apiserver as bin/kube or in TENURE_TEST_KUBE")
	}
}

func start() error {
	root, err := fixture.Root()
	if err != nil {
		return err
	}
	binary := os.Getenv("TENURE_TEST_KUBE")
	if binary == "" {
		binary = filepath.Join(root, "bin", "kube")
	}
	_, etcdErr := exec.LookPath("etcd")
	if _, err := os.Stat(binary); err != nil || etcdErr != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 8*time.Minute)
	defer cancel()
	if api, err = startServer(ctx, binary); err != nil {
		return err
	}
	if admin, err = client("admin"); err != nil {
		return err
	}
	if err := prepare(ctx, root); err != nil {
		return errors.Join(err, api.stop())
	}
	return nil
}

// client calls as a user.
func client(user string) (dynamic.Interface, error) {
	path, err := api.kubeconfig(user)
	if err != nil {
		return nil, err
	}
	return kube.Connect(path)
}

// prepare makes what an administrator makes: the driver's CRDs, a namespace with a
// service account, and the roles of the docs.
func prepare(ctx context.Context, root string) error {
	dir, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/secrets-store-csi-driver").Output()
	if err != nil {
		return fmt.Errorf("finding the driver's module: %w", err)
	}
	files, err := filepath.Glob(filepath.Join(strings.TrimSpace(string(dir)), "config/crd/bases/*.yaml"))
	if err != nil || len(files) == 0 {
		return fmt.Errorf("finding the driver's CRDs: %w", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if err := create(ctx, crds, "", text); err != nil {
			return err
		}
	}
	for _, kind := range []schema.GroupVersionResource{spcs, statuses} { // served a while after their CRD is made
		if err := fixture.Eventually(ctx, true, func(ctx context.Context) (bool, error) {
			_, err := admin.Resource(kind).List(ctx, metav1.ListOptions{})
			return err == nil, err
		}); err != nil {
			return err
		}
	}
	docs, err := os.ReadFile(filepath.Join(root, "docs/kubernetes-permissions.md"))
	if err != nil {
		return err
	}
	_, rules, _ := bytes.Cut(docs, []byte("```yaml\n"))
	rules, _, _ = bytes.Cut(rules, []byte("```\n"))
	for _, role := range bytes.Split(rules, []byte("---\n")) {
		if err := create(ctx, roles, "", role); err != nil {
			return err
		}
	}
	for _, permission := range []string{"events", "pods", "spcs", "status", "token-requests"} {
		if err := create(ctx, bindings, "", fmt.Appendf(nil, `{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, metadata: {name: tenure-%[1]s},
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: tenure-%[1]s}, subjects: [{kind: User, name: %[1]s}, {kind: User, name: all}]}`, permission)); err != nil {
			return err
		}
	}
	return errors.Join(
		create(ctx, namespaces, "", fmt.Appendf(nil, "{apiVersion: v1, kind: Namespace, metadata: {name: %s}}", namespace)),
		create(ctx, accounts, namespace, []byte("{apiVersion: v1, kind: ServiceAccount, metadata: {name: app}}")),
	)
}

// create makes an object of YAML.
func create(ctx context.Context, of schema.GroupVersionResource, namespace string, text []byte) error {
	u := &unstructured.Unstructured{}
	if err := yaml.Unmarshal(text, &u.Object); err != nil {
		return fmt.Errorf("reading a %s: %w", of.Resource, err)
	}
	_, err := admin.Resource(of).Namespace(namespace).Create(ctx, u, metav1.CreateOptions{FieldValidation: "Strict"})
	if err != nil {
		return fmt.Errorf("making a %s: %w", of.Resource, err)
	}
	return nil
}

// readyz asks the API server as nobody in particular.
func readyz(ctx context.Context, url string, ca []byte) (int, error) {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	web := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/readyz", nil)
	if err != nil {
		return 0, err
	}
	resp, err := web.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, err
}

// soon waits until a condition holds.
func soon(t *testing.T, what string, holds func() bool) {
	t.Helper()
	require.Eventually(t, holds, 2*time.Minute, 20*time.Millisecond, what)
}

// as answers a client of a user.
func as(t *testing.T, user string) dynamic.Interface {
	t.Helper()
	c, err := client(user)
	require.NoError(t, err)
	return c
}

// forbidden requires that a call was refused for want of permission.
func forbidden(t *testing.T, err error) {
	t.Helper()
	require.True(t, apierrors.IsForbidden(err), "%v", err)
}

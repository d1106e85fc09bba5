//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	core "k8s.io/api/core/v1"
	kube "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	driver "sigs.k8s.io/secrets-store-csi-driver/apis/v1"

	"github.com/tenure-csi/tenure/test/fixture"
	"github.com/tenure-csi/tenure/test/node"
)

const (
	// account is the only service account that a scene's role accepts.
	account = "app"
	// secrets is where applications mount a scene's volume.
	secrets = "/secrets"
	// motto is what a scene's key-value secret says.
	motto = "festina lente"
	// soon is more than whatever is done at once takes on a busy machine.
	soon = 90 * time.Second
)

// applicationImage is busybox and the real psql.
func applicationImage() node.Image {
	psql, _ := filepath.Glob("/usr/lib/postgresql/*/bin/psql")
	files := map[string]string{"/bin/psql": psql[len(psql)-1]}
	for _, name := range []string{"sh", "cat", "sleep", "stat", "ls"} {
		files["/bin/"+name] = "/bin/busybox"
	}
	return node.Image{Name: "localhost/app:e2e", Files: files, Libraries: true, Command: []string{"sh"}}
}

// scene is a test's own corner of the cluster, Vault and PostgreSQL: a namespace
// with a service account, and what it may read.
type scene struct {
	*fixture.Scope
	namespace string
}

// newScene sets a scene up; its namespace is deleted at the test's end.
func newScene(t *testing.T, o fixture.ScopeOptions) *scene {
	t.Helper()
	ctx := t.Context()
	scope := fixture.Scoped(t, stack, o)
	s := &scene{Scope: scope, namespace: scope.Name}
	role := fixture.AuthRole{Namespace: s.namespace, Policies: []string{scope.Name}, TTL: time.Hour, Max: 24 * time.Hour}
	require.NoError(t, stack.Vault.KubernetesRole(ctx, "kubernetes", scope.Name, account, role))
	require.NoError(t, stack.Vault.WriteKV1(ctx, scope.KV, "app", map[string]any{"motto": motto}))
	space := &core.Namespace{ObjectMeta: meta.ObjectMeta{Name: s.namespace}}
	require.NoError(t, cluster.Client.Create(ctx, space))
	t.Cleanup(func() {
		if t.Failed() {
			s.describe(t)
		}
		ctx := context.WithoutCancel(t.Context())
		require.NoError(t, client.IgnoreNotFound(cluster.Client.Delete(ctx, space)))
	})
	s.create(t, &core.ServiceAccount{ObjectMeta: meta.ObjectMeta{Name: account}})
	return s
}

// create makes an object in the scene's namespace.
func (s *scene) create(t *testing.T, object client.Object) {
	t.Helper()
	object.SetNamespace(s.namespace)
	require.NoError(t, cluster.Client.Create(t.Context(), object))
}

// remove deletes an object.
func (s *scene) remove(t *testing.T, object client.Object, o ...client.DeleteOption) {
	t.Helper()
	require.NoError(t, cluster.Client.Delete(t.Context(), object, o...))
}

// class makes a SecretProviderClass for the scene's login.
func (s *scene) class(t *testing.T, name, objects string, edits ...func(*driver.SecretProviderClass)) *driver.SecretProviderClass {
	t.Helper()
	c := &driver.SecretProviderClass{ObjectMeta: meta.ObjectMeta{Name: name}}
	c.Spec.Provider, c.Spec.Parameters = "tenure", map[string]string{"roleName": s.Name, "objects": objects}
	for _, edit := range edits {
		edit(c)
	}
	s.create(t, c)
	return c
}

// orders is a class of a database user's service file and of a key-value secret.
func (s *scene) orders(t *testing.T) {
	t.Helper()
	s.class(t, "orders", s.database("")+s.motto())
}

// motto answers an object that is the key-value secret.
func (s *scene) motto() string {
	return fmt.Sprintf("\n- {objectName: motto, secretPath: %s/app, secretKey: motto}\n", s.KV)
}

// mottoEvery is motto, looked at in another interval than by default.
func (s *scene) mottoEvery(interval string) string {
	return strings.Replace(s.motto(), "}", ", refreshInterval: "+interval+"}", 1)
}

// database answers an object that is a libpq service file, with further fields.
func (s *scene) database(fields string) string {
	host, port, _ := net.SplitHostPort(stack.Postgres.Addr)
	return fmt.Sprintf(`
- objectName: orders.conf
  secretPath: %s
  format: pg-service
  connection: {host: %s, port: %s, dbname: postgres}
%s`, s.Creds, host, port, fields)
}

// template answers what a pod is made of that mounts the classes, the first at
// /secrets and the others at /secrets-NAME, and runs a script.
func template(script string, classes ...string) core.PodTemplateSpec {
	yes, grace := true, int64(5)
	app := core.Container{
		Name: "app", Image: "localhost/app:e2e", ImagePullPolicy: core.PullNever, Command: []string{"sh", "-c", script},
		Env: []core.EnvVar{{Name: "PGSERVICEFILE", Value: secrets + "/orders.conf"}, {Name: "PGSERVICE", Value: "orders"}},
	}
	spec := core.PodSpec{ServiceAccountName: account, HostNetwork: true, TerminationGracePeriodSeconds: &grace}
	for i, class := range classes {
		path := secrets
		if i > 0 {
			path += "-" + class
		}
		app.VolumeMounts = append(app.VolumeMounts, core.VolumeMount{Name: class, MountPath: path, ReadOnly: true})
		spec.Volumes = append(spec.Volumes, core.Volume{Name: class, VolumeSource: core.VolumeSource{CSI: &core.CSIVolumeSource{
			Driver: node.DriverName, ReadOnly: &yes, VolumeAttributes: map[string]string{"secretProviderClass": class},
		}}})
	}
	spec.Containers = []core.Container{app}
	return core.PodTemplateSpec{ObjectMeta: meta.ObjectMeta{Labels: map[string]string{"app": "app"}}, Spec: spec}
}

// idle is the script of a pod that only waits for its end.
const idle = "trap exit TERM; while :; do sleep 1; done"

// pod answers a pod named app that is made of a template.
func pod(of core.PodTemplateSpec) *core.Pod {
	return &core.Pod{ObjectMeta: meta.ObjectMeta{Name: "app", Labels: of.Labels}, Spec: of.Spec}
}

// run creates a pod and waits until it runs.
func (s *scene) run(t *testing.T, of core.PodTemplateSpec) *core.Pod {
	t.Helper()
	p := pod(of)
	s.create(t, p)
	s.awaitRunning(t, p)
	return p
}

// awaitRunning waits until the pod's container runs, and keeps what is known of it then.
func (s *scene) awaitRunning(t *testing.T, p *core.Pod) {
	t.Helper()
	require.NoError(t, await(t.Context(), soon, func(ctx context.Context) error {
		if err := cluster.Client.Get(ctx, client.ObjectKeyFromObject(p), p); err != nil {
			return err
		}
		for _, c := range p.Status.ContainerStatuses {
			if c.State.Running != nil {
				return nil
			}
		}
		return fmt.Errorf("pod %s is %s", p.Name, p.Status.Phase)
	}))
}

// exec runs a command in the pod and answers what it prints.
func exec(t *testing.T, p *core.Pod, argv ...string) string {
	t.Helper()
	out, err := cluster.Exec(t.Context(), p, "app", argv...)
	require.NoError(t, err)
	return strings.TrimSpace(out)
}

// user logs in to PostgreSQL with the pod's own psql and file, and answers as whom.
func user(t *testing.T, p *core.Pod) string {
	t.Helper()
	return exec(t, p, "psql", "-XAtc", "select current_user")
}

// holds waits until the scene has so many database users, and as many leases.
func (s *scene) holds(t *testing.T, want int) {
	t.Helper()
	s.holdsWithin(t, soon, want)
}

// holdsWithin is holds for what takes another time.
func (s *scene) holdsWithin(t *testing.T, limit time.Duration, want int) {
	t.Helper()
	for what, look := range map[string]func(context.Context) (int, error){"database users": s.Users, "leases": s.Leases} {
		require.NoError(t, await(t.Context(), limit, func(ctx context.Context) error {
			switch got, err := look(ctx); {
			case err != nil:
				return err
			case got != want:
				return fmt.Errorf("got %d, want %d", got, want)
			}
			return nil
		}), what)
	}
}

// awaitGone waits until an object is no more.
func awaitGone(t *testing.T, object client.Object) {
	t.Helper()
	require.NoError(t, await(t.Context(), soon, func(ctx context.Context) error {
		switch err := cluster.Client.Get(ctx, client.ObjectKeyFromObject(object), object); {
		case kube.IsNotFound(err):
			return nil
		case err != nil:
			return err
		}
		return errors.New("it is still there")
	}), object.GetName())
}

// pods answers the scene's pods.
func (s *scene) pods(ctx context.Context) ([]core.Pod, error) {
	var list core.PodList
	err := cluster.Client.List(ctx, &list, client.InNamespace(s.namespace))
	return list.Items, err
}

// events answers the messages of the events with a reason about a pod.
func (s *scene) events(ctx context.Context, pod, reason string) ([]string, error) {
	var list core.EventList
	if err := cluster.Client.List(ctx, &list, client.InNamespace(s.namespace)); err != nil {
		return nil, err
	}
	var messages []string
	for _, e := range list.Items {
		if e.InvolvedObject.Name == pod && e.Reason == reason {
			messages = append(messages, e.Message)
		}
	}
	return messages, nil
}

// daemonLogs are where kubelet keeps those of the daemon's pods.
const daemonLogs = "/var/log/pods/" + releaseNamespace + "_" + release + "-*/tenure/*.log"

// describe logs what a person would look at after a failure.
func (s *scene) describe(t *testing.T) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	pods, err := s.pods(ctx)
	t.Log("pods:", err)
	for _, p := range pods {
		t.Logf("  %s %s %+v", p.Name, p.Status.Phase, p.Status.ContainerStatuses)
	}
	var list core.EventList
	t.Log("events:", cluster.Client.List(ctx, &list, client.InNamespace(s.namespace)))
	for _, e := range list.Items {
		t.Logf("  %s %s: %s", e.InvolvedObject.Name, e.Reason, e.Message)
	}
	logs, _ := filepath.Glob(daemonLogs)
	t.Log("the daemon's logs:", logs)
}

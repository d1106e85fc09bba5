package charts

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	rbac "k8s.io/api/rbac/v1"
	storage "k8s.io/api/storage/v1"
	"sigs.k8s.io/yaml"
)

const repository = "../.."

// chart is the chart as it is packed, with the driver's in it.
var chart string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "tenure-chart-*")
	if err == nil {
		defer os.RemoveAll(dir)
		chart = filepath.Join(dir, "tenure")
		var said []byte
		if said, err = exec.Command(repository+"/test/scripts/chart.sh", dir).CombinedOutput(); err != nil {
			err = fmt.Errorf("%w: %s", err, said)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "putting the chart together:", err)
		return 1
	}
	return m.Run()
}

// helm runs bin/helm with values (YAML) on standard input.
func helm(t *testing.T, values string, args ...string) (stdout string, err error) {
	t.Helper()
	path, err := filepath.Abs(repository + "/bin/helm")
	require.NoError(t, err)
	require.FileExists(t, path, "build it with: make bin/helm")
	if args[0] != "uninstall" {
		args = append(args, "--values", "-")
	}
	cmd := exec.CommandContext(t.Context(), path, args...)
	cmd.Stdin = strings.NewReader(values)
	// Helm is not to find a cluster, nor to leave a cache in the home directory.
	cmd.Env = append(os.Environ(), "KUBECONFIG=/dev/null", "HELM_CACHE_HOME="+t.TempDir(), "HELM_CONFIG_HOME="+t.TempDir(), "HELM_DATA_HOME="+t.TempDir())
	var out, problem bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problem
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%w: %s", err, &problem)
	}
	return out.String(), nil
}

// script runs one of test/scripts.
func script(t *testing.T, name string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(repository, "test/scripts", name))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	return string(out), err
}

// needed is what an installation must say.
const needed = "--set=image.repository=registry.example.com/tenure"

// manifests are a rendering's objects, each decoded strictly: a field that the API
// does not know is an error.
type manifests struct {
	daemonSet     *apps.DaemonSet
	account       *core.ServiceAccount
	role          *rbac.ClusterRole
	binding       *rbac.ClusterRoleBinding
	secret        *core.Secret
	configMap     *core.ConfigMap
	networkPolicy *networking.NetworkPolicy
	podMonitor    *podMonitor
	csiDriver     *storage.CSIDriver // of the sub-chart, whose other objects are not looked at
}

// podMonitor is as much of the Prometheus operator's type as the chart uses: the
// type itself is in a module with far more.
type podMonitor struct {
	APIVersion, Kind string
	Metadata         struct {
		Name, Namespace string
		Labels          map[string]string
	}
	Spec struct {
		Selector            struct{ MatchLabels map[string]string }
		PodMetricsEndpoints []struct{ Port, Path, Interval string }
	}
}

// render answers the objects that the values give.
func render(t *testing.T, values string) manifests {
	t.Helper()
	text, err := helm(t, values, "template", "tenure", chart, "--namespace", "kube-system", needed)
	require.NoError(t, err)
	return decode(t, text)
}

func decode(t *testing.T, text string) manifests {
	t.Helper()
	m := manifests{}
	for _, document := range regexp.MustCompile(`(?m)^---$`).Split(text, -1) {
		var head struct{ APIVersion, Kind string }
		require.NoError(t, yaml.Unmarshal([]byte(document), &head))
		if head.Kind == "" || strings.Contains(document, "# Source: tenure/charts/") && head.Kind != "CSIDriver" {
			continue
		}
		into := map[string]any{
			"apps/v1 DaemonSet":                               &m.daemonSet,
			"v1 ServiceAccount":                               &m.account,
			"rbac.authorization.k8s.io/v1 ClusterRole":        &m.role,
			"rbac.authorization.k8s.io/v1 ClusterRoleBinding": &m.binding,
			"v1 Secret":                           &m.secret,
			"v1 ConfigMap":                        &m.configMap,
			"networking.k8s.io/v1 NetworkPolicy":  &m.networkPolicy,
			"monitoring.coreos.com/v1 PodMonitor": &m.podMonitor,
			"storage.k8s.io/v1 CSIDriver":         &m.csiDriver,
		}[head.APIVersion+" "+head.Kind]
		require.NotNil(t, into, "nothing checks a %s %s", head.APIVersion, head.Kind)
		require.NoError(t, yaml.UnmarshalStrict([]byte(document), into), document)
	}
	return m
}

// container is the daemon's.
func (m manifests) container(t *testing.T) core.Container {
	t.Helper()
	require.NotNil(t, m.daemonSet)
	require.Len(t, m.daemonSet.Spec.Template.Spec.Containers, 1)
	return m.daemonSet.Spec.Template.Spec.Containers[0]
}

// mountOf answers what is mounted at a path.
func (m manifests) mountOf(t *testing.T, path string) (core.VolumeMount, core.VolumeSource) {
	t.Helper()
	for _, mount := range m.container(t).VolumeMounts {
		if mount.MountPath != path {
			continue
		}
		for _, volume := range m.daemonSet.Spec.Template.Spec.Volumes {
			if volume.Name == mount.Name {
				return mount, volume.VolumeSource
			}
		}
	}
	require.Fail(t, "nothing is mounted at "+path)
	return core.VolumeMount{}, core.VolumeSource{}
}

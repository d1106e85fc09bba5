package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	authentication "k8s.io/api/authentication/v1"
	core "k8s.io/api/core/v1"
	storage "k8s.io/api/storage/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubeconfig "k8s.io/client-go/tools/clientcmd/api/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tenure-csi/tenure/test/fixture"
)

// DriverName is the name of the Secrets Store CSI driver.
const DriverName = "secrets-store.csi.k8s.io"

// Audience is whom the pods' tokens are for where [Options] do not say.
const Audience = "vault"

const (
	driverSocket    = "/var/lib/kubelet/plugins/csi-secrets-store/csi.sock"
	pluginsRegistry = "/var/lib/kubelet/plugins_registry"
)

// manifests are those of the driver's own that the node needs: its types, and the
// rights of its service account.
var manifests = []string{
	"secrets-store.csi.x-k8s.io_secretproviderclasses.yaml",
	"secrets-store.csi.x-k8s.io_secretproviderclasspodstatuses.yaml",
	"rbac-secretproviderclass.yaml",
	"rbac-secretprovidersyncing.yaml",
}

// startDriver starts the driver with the rights that its manifests give it, and
// registers it with kubelet as its registrar does.
func (n *Node) startDriver(ctx context.Context, o Options) error {
	source, err := driverSource(ctx)
	if err != nil {
		return err
	}
	for _, name := range manifests {
		text, err := os.ReadFile(filepath.Join(source, "deploy", name))
		if err != nil {
			return fmt.Errorf("reading the driver's manifests: %w", err)
		}
		if err := n.Apply(ctx, text); err != nil {
			return err
		}
	}
	if err := n.SetDriver(ctx, o); err != nil {
		return err
	}
	token, err := n.Token(ctx, "kube-system", "secrets-store-csi-driver")
	if err != nil {
		return err
	}
	if err := n.authority.writeKubeconfig(etc+"/driver.conf", kubeconfig.AuthInfo{Token: token}); err != nil {
		return err
	}
	n.Driver = &Part{name: "secrets-store-csi-driver", make: func() *exec.Cmd { return n.driver(o) }, ready: driverListens}
	if err := os.MkdirAll(filepath.Dir(driverSocket), 0o750); err != nil {
		return fmt.Errorf("making the driver's directory: %w", err)
	}
	if err := n.start(ctx, n.Driver); err != nil {
		return err
	}
	n.registrar = &Part{
		name: "registrar",
		make: func() *exec.Cmd {
			return n.kube("register", "--name="+DriverName, "--endpoint="+driverSocket,
				"--listen="+pluginsRegistry+"/"+DriverName+"-reg.sock")
		},
		ready: n.registered,
	}
	return n.start(ctx, n.registrar)
}

func (n *Node) driver(o Options) *exec.Cmd {
	cmd := program(filepath.Join(n.bin, "secrets-store-csi-driver"),
		"--endpoint=unix://"+driverSocket, "--nodeid="+Name, "--metrics-addr=127.0.0.1:8095",
		"--enable-secret-rotation="+strconv.FormatBool(!o.NoRotation), "--v=2")
	cmd.Env = append(cmd.Env, "KUBECONFIG="+etc+"/driver.conf")
	return cmd
}

// SetDriver writes the CSIDriver object as the driver's chart would for the options.
func (n *Node) SetDriver(ctx context.Context, o Options) error {
	yes, republish := true, !o.NoRotation
	object := &storage.CSIDriver{
		TypeMeta:   meta.TypeMeta{APIVersion: "storage.k8s.io/v1", Kind: "CSIDriver"},
		ObjectMeta: meta.ObjectMeta{Name: DriverName},
		Spec: storage.CSIDriverSpec{
			PodInfoOnMount: &yes, AttachRequired: new(bool), RequiresRepublish: &republish,
			VolumeLifecycleModes: []storage.VolumeLifecycleMode{storage.VolumeLifecycleEphemeral},
		},
	}
	if o.Audiences == nil {
		o.Audiences = []string{Audience}
	}
	for _, audience := range o.Audiences {
		object.Spec.TokenRequests = append(object.Spec.TokenRequests, storage.TokenRequest{Audience: audience})
	}
	return n.Client.Patch(ctx, object, client.Apply, client.FieldOwner("node"), client.ForceOwnership)
}

// SetRotation starts the driver again with its secret rotation on or off.
func (n *Node) SetRotation(ctx context.Context, on bool) error {
	o := Options{NoRotation: !on}
	if err := n.SetDriver(ctx, o); err != nil {
		return err
	}
	if err := n.Driver.Kill(); err != nil {
		return err
	}
	n.Driver.make = func() *exec.Cmd { return n.driver(o) }
	return n.Driver.Start(ctx)
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

// registered succeeds once kubelet has told the registrar so.
func (n *Node) registered(context.Context) error {
	if !strings.Contains(n.registrar.Logs(), "kubelet has registered the driver: true") {
		return errors.New("kubelet does not know the driver yet")
	}
	return nil
}

// driverListens succeeds when the driver takes connections.
func driverListens(ctx context.Context) error {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", driverSocket)
	if err != nil {
		return err
	}
	return conn.Close()
}

// driverSource answers the directory of the driver's module.
func driverSource(ctx context.Context) (string, error) {
	root, err := fixture.Root()
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/secrets-store-csi-driver")
	cmd.Dir = filepath.Join(root, "test", "csidriver")
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("finding the driver's module: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}

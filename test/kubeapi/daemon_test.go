package kubeapi

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tenure-csi/tenure/internal/lease"
	"github.com/tenure-csi/tenure/provider"
	"github.com/tenure-csi/tenure/test/fixture"
)

// TestDaemonUsesTheAPI runs the daemon with everything switched on. kubelet and the
// driver are the fixture's: after the first Mount nobody mounts again, as with the
// driver's rotation off.
func TestDaemonUsesTheAPI(t *testing.T) {
	needAPI(t)
	config, err := api.kubeconfig("all")
	require.NoError(t, err)
	scope := fixture.Scoped(t, stack, fixture.ScopeOptions{})
	require.NoError(t, stack.Vault.WriteKV1(t.Context(), scope.KV, "app", map[string]any{"k": "v"}))
	node := fixture.NodeFor(t, fixture.NodeOptions{Issuer: stack.Issuer})
	daemon := fixture.DaemonFor(t, fixture.DaemonOptions{Node: node, VaultAddr: stack.Vault.Addr, Args: []string{
		"--kube-events", "--kube-pods", "--kube-spcs", "--kube-status", "--kube-token-requests", "--node-name=n-daemon", "--kubeconfig=" + config,
	}})
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(daemon.Logs())
		}
	})

	// An SPC, a pod, its first Mount, and what the driver records of it.
	object := func(name string) string {
		return fmt.Sprintf("{objectName: %s, secretPath: %s/app, secretKey: k}", name, scope.KV)
	}
	credential := fmt.Sprintf("{objectName: user, secretPath: %s, secretKey: username}", scope.Creds)
	spc := scope.SPC("[" + credential + "]")
	makeSPC(t, spc.Name, "[]")
	for k, v := range spc.Parameters {
		editSPC(t, spc.Name, k, v)
	}
	pod := makePod(t, "daemon-pod", "n-daemon", spc.Name)
	volume, err := node.Volume(fixture.Pod{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, ServiceAccount: pod.ServiceAccount},
		"secrets", spc, map[string]string{"mine": "1"})
	require.NoError(t, err)
	_, err = volume.Mount(t.Context())
	require.NoError(t, err)
	user, err := volume.Read("user")
	require.NoError(t, err)
	recorded := recordStatus(t, pod, spc.Name, volume.Target)

	// An edit reaches the volume without a Mount, and the recorded versions follow.
	began := time.Now()
	edited := "[" + credential + ", " + object("added") + "]"
	editSPC(t, spc.Name, "objects", edited)
	soon(t, "the new file", func() bool { text, err := volume.Read("added"); return err == nil && string(text) == "v" })
	t.Logf("measured: an edit was in the volume after %v", time.Since(began).Round(time.Millisecond))
	same, err := volume.Read("user")
	require.NoError(t, err)
	require.Equal(t, string(user), string(same), "what did not change is carried over")
	soon(t, "the recorded versions", func() bool { return len(versionsIn(t, recorded)) == 2 })
	volume.Attributes["objects"] = edited
	versions, err := volume.Republish(t.Context())
	require.NoError(t, err)
	for _, v := range versionsIn(t, recorded) {
		one := v.(map[string]any)
		require.Equal(t, versions[one["id"].(string)], one["version"])
	}
	reads, err := scope.Reads()
	require.NoError(t, err)
	require.Equal(t, 1, reads, "the daemon computes the same SPC as the driver: a republish issues nothing")

	// An edit that can't be carried out is an Event on the pod.
	editSPC(t, spc.Name, "objects", "[{objectName: x, secretPath: "+scope.KV+"/nothing}]")
	soon(t, "the Event", func() bool { return messages(t, pod)["ChangeNotCarriedOut"] != "" })
	said := messages(t, pod)
	require.Contains(t, said["ChangeNotCarriedOut"], `object "x"`)
	require.Contains(t, said["ChangeNotCarriedOut"], "nothing is there")
	require.Contains(t, said["SpecWarning"], "mine")
	soon(t, "word of the subPath mount", func() bool { return messages(t, pod)["SubPathNotUpdated"] != "" })
	require.Contains(t, messages(t, pod)["SubPathNotUpdated"], "container fixed")
	require.NotContains(t, fmt.Sprint(said), string(user))

	// The pod is deleted, and its directory stays: the lease ends all the same.
	removePod(t, pod.Name)
	neighbour := makePod(t, "daemon-neighbour", "n-daemon", spc.Name)
	gone, err := node.Volume(fixture.Pod{Namespace: namespace, Name: neighbour.Name, UID: neighbour.UID, ServiceAccount: "app"}, "secrets", spc, nil)
	require.NoError(t, err)
	_, err = gone.Mount(t.Context())
	require.NoError(t, err)
	require.Equal(t, 2, held(t, scope.Leases))
	removePod(t, neighbour.Name)
	require.NoError(t, gone.Unpublish())
	soon(t, "the neighbour's end", func() bool { return held(t, scope.Leases) < 2 })
	require.Equal(t, 1, held(t, scope.Leases), "the volume is still mounted: containers may run")
	text, err := daemon.Status(t.Context())
	require.NoError(t, err)
	require.Contains(t, string(text), pod.UID)
	require.NoError(t, volume.Unpublish())
	began = time.Now()
	soon(t, "the lease's end", func() bool { return held(t, scope.Leases) == 0 })
	t.Logf("measured: the lease was ended %v after the unmount", time.Since(began).Round(time.Millisecond))
	soon(t, "an empty status", func() bool {
		text, err := daemon.Status(t.Context())
		var all []lease.VolumeStatus
		return err == nil && json.Unmarshal(text, &all) == nil && len(all) == 0
	})
	t.Logf("measured: resident with everything on and nothing mounted: %.0f MiB", fixture.RSS(t, daemon.Pid()))
	require.NoError(t, daemon.Stop())
}

// TestCanary looks for secrets in all that the daemon wrote into the API.
func TestCanary(t *testing.T) {
	needAPI(t)
	config, err := api.kubeconfig("all")
	require.NoError(t, err)
	const canary = "canary-41c7e09b66"
	scope := fixture.Scoped(t, stack, fixture.ScopeOptions{TTL: 10 * time.Second, MaxTTL: 20 * time.Second})
	require.NoError(t, stack.Vault.WriteKV1(t.Context(), scope.KV, "app", map[string]any{"k": canary, "no-variable": canary}))
	node := fixture.NodeFor(t, fixture.NodeOptions{Issuer: stack.Issuer})
	daemon := fixture.DaemonFor(t, fixture.DaemonOptions{Node: node, VaultAddr: stack.Vault.Addr, Args: []string{
		"--kube-events", "--kube-pods", "--kube-spcs", "--kube-status", "--kube-token-requests", "--node-name=n-canary", "--kubeconfig=" + config,
	}})
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(daemon.Logs())
		}
	})
	spc := scope.SPC(fmt.Sprintf("[{objectName: password, secretPath: %s, secretKey: password}, {objectName: kv, secretPath: %s/app, secretKey: k}]", scope.Creds, scope.KV))
	makeSPC(t, spc.Name, "[]")
	for k, v := range spc.Parameters {
		editSPC(t, spc.Name, k, v)
	}
	pod := makePod(t, "canary-pod", "n-canary", spc.Name)
	volume, err := node.Volume(fixture.Pod{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, ServiceAccount: pod.ServiceAccount},
		"secrets", spc, map[string]string{"mine": "1"})
	require.NoError(t, err)
	volume.Secrets = map[string]string{"unused": canary}
	_, err = volume.Mount(t.Context())
	require.NoError(t, err)
	first, err := volume.Read("password")
	require.NoError(t, err)
	recorded := recordStatus(t, pod, spc.Name, volume.Target)
	for _, objects := range []string{ // each fails with the value in hand
		"{objectName: x, secretPath: " + scope.KV + "/app, format: pem}", "{objectName: x, secretPath: " + scope.KV + "/app, format: env}",
		"{objectName: x, secretPath: " + scope.KV + "/app, format: template, template: '{{ .k.x }}'}",
	} {
		before := len(eventsOf(t, pod))
		editSPC(t, spc.Name, "objects", "["+objects+"]")
		soon(t, "the Event", func() bool { return len(eventsOf(t, pod)) > before })
	}
	soon(t, "a replacement", func() bool { now, err := volume.Read("password"); return err == nil && string(now) != string(first) })
	second, err := volume.Read("password")
	require.NoError(t, err)
	soon(t, "the versions", func() bool { return len(versionsIn(t, recorded)) == 2 })
	for _, of := range []schema.GroupVersionResource{events, statuses, pods, spcs} {
		all, err := admin.Resource(of).Namespace(namespace).List(t.Context(), metav1.ListOptions{})
		require.NoError(t, err)
		require.NotEmpty(t, all.Items)
		text, err := json.Marshal(all)
		require.NoError(t, err)
		for _, secret := range []string{canary, string(first), string(second), "hvs.", "eyJ"} { // Vault's tokens and JWTs begin like this
			require.NotContains(t, string(text), secret, of.Resource)
		}
	}
	said := messages(t, pod)
	require.Contains(t, said, "ChangeNotCarriedOut")
	require.Contains(t, said, "SubPathNotUpdated")
}

// TestDaemonAsksForAToken: nobody mounts again, the token of the first Mount has
// expired, and Vault's token ends with the credential.
func TestDaemonAsksForAToken(t *testing.T) {
	needAPI(t)
	config, err := api.kubeconfig("token-requests")
	require.NoError(t, err)
	const life = 30 * time.Second
	scope := fixture.Scoped(t, stack, fixture.ScopeOptions{TTL: life, MaxTTL: life, Auth: fixture.AuthRole{TTL: life, Max: life}})
	_, err = stack.Vault.Client().Logical().WriteWithContext(t.Context(), "auth/"+scope.Name+"/config", map[string]any{
		"jwt_validation_pubkeys": []string{stack.Issuer.PublicKey(), api.PublicKey},
	})
	require.NoError(t, err)
	node := fixture.NodeFor(t, fixture.NodeOptions{Issuer: stack.Issuer})
	daemon := fixture.DaemonFor(t, fixture.DaemonOptions{Node: node, VaultAddr: stack.Vault.Addr, Args: []string{"--kube-token-requests", "--kubeconfig=" + config}})
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(daemon.Logs())
		}
	})
	pod := makePod(t, "token-pod", "n-token", "x")
	spc := scope.SPC(fmt.Sprintf("[{objectName: user, secretPath: %s, secretKey: username}]", scope.Creds))
	volume, err := node.Volume(fixture.Pod{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, ServiceAccount: pod.ServiceAccount}, "secrets", spc, nil)
	require.NoError(t, err)
	volume.TokenTTL = 10 * time.Second
	_, err = volume.Mount(t.Context())
	require.NoError(t, err)
	first, err := volume.Read("user")
	require.NoError(t, err)
	soon(t, "a new credential", func() bool { now, err := volume.Read("user"); return err == nil && string(now) != string(first) })
	logins, err := scope.Logins()
	require.NoError(t, err)
	require.Equal(t, 2, logins)
	text, err := daemon.Status(t.Context())
	require.NoError(t, err)
	require.Contains(t, string(text), `"state": "live"`)
	require.NotContains(t, string(text), lease.NeedsIdentity)
}

// TestDaemonWithoutTheAPIServer: what is switched on and does not answer keeps
// nothing else from working.
func TestDaemonWithoutTheAPIServer(t *testing.T) {
	needAPI(t)
	config, err := api.kubeconfig("nobody")
	require.NoError(t, err)
	scope := fixture.Scoped(t, stack, fixture.ScopeOptions{})
	node := fixture.NodeFor(t, fixture.NodeOptions{Issuer: stack.Issuer})
	daemon := fixture.DaemonFor(t, fixture.DaemonOptions{Node: node, VaultAddr: stack.Vault.Addr, Args: []string{
		"--kube-events", "--kube-pods", "--kube-spcs", "--kube-status", "--kube-token-requests", "--node-name=n", "--kubeconfig=" + config,
	}})
	spc := scope.SPC(fmt.Sprintf("[{objectName: user, secretPath: %s, secretKey: username}]", scope.Creds))
	pod := fixture.Pod{Namespace: namespace, Name: "p", UID: "uid-nobody", ServiceAccount: "app"}
	volume, err := node.Volume(pod, "secrets", spc, nil)
	require.NoError(t, err)
	_, err = volume.Mount(t.Context())
	require.NoError(t, err)
	require.Equal(t, 1, held(t, scope.Leases))
	require.NoError(t, node.DeletePod(pod))
	soon(t, "the lease's end", func() bool { return held(t, scope.Leases) == 0 })
	require.Contains(t, daemon.Logs(), "forbidden")
	require.NoError(t, daemon.Stop())
}

// messages answers a pod's Events by reason.
func messages(t *testing.T, pod provider.Pod) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, e := range eventsOf(t, pod) {
		all[e.Object["reason"].(string)] = e.Object["message"].(string)
	}
	return all
}

// held answers a count of Vault's.
func held(t *testing.T, count func(context.Context) (int, error)) int {
	t.Helper()
	n, err := count(t.Context())
	require.NoError(t, err)
	return n
}

package kube

import (
	"context"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tenure-csi/tenure/internal/lease"
)

// volumes stands for a Manager's.
type volumes struct {
	mu    sync.Mutex
	live  bool
	edits []lease.Edit
}

func (v *volumes) edit(e lease.Edit) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.edits = append(v.edits, e)
	return v.live
}

func (v *volumes) seen() []lease.Edit {
	v.mu.Lock()
	defer v.mu.Unlock()
	return append([]lease.Edit(nil), v.edits...)
}

func TestEditReachesTheVolumesOfTheNode(t *testing.T) {
	client := api(apiPod("uid-1"), apiSPC("1", "old"))
	node := &volumes{live: true}
	ctx, cancel := context.WithCancel(t.Context())
	p := NewPods(ctx, client, "n1", quiet())
	s := NewSPCs(ctx, client, p, node.edit)
	running(t, cancel, p.Run)
	running(t, cancel, s.Run)
	soon(t, "the SPC as it was at the start", func() bool { return len(node.seen()) == 1 })

	watched(t, client, spcResource)
	resource := client.Resource(spcResource).Namespace(orders.Namespace)
	_, err := resource.Update(t.Context(), apiSPC("2", "new"), metav1.UpdateOptions{})
	require.NoError(t, err)
	soon(t, "the edit", func() bool { return len(node.seen()) == 2 })
	require.Equal(t, lease.Edit{PodUID: "uid-1", Volume: "db", Provider: "tenure", Parameters: map[string]string{
		"objects": "new", "roleName": "mine", "secretProviderClass": "orders-db",
	}}, node.seen()[1], "the pod's volumeAttributes win")

	require.NoError(t, resource.Delete(t.Context(), "orders-db", metav1.DeleteOptions{}))
	soon(t, "the deletion", func() bool { return len(s.store.List()) == 0 })
	require.Len(t, node.seen(), 2, "a deleted SPC changes no volume")
}

// TestVersionsThatAreOffered calls offer itself, with what the informers would hold.
func TestVersionsThatAreOffered(t *testing.T) {
	client := api()
	node := &volumes{}
	s := NewSPCs(t.Context(), client, NewPods(t.Context(), client, "n1", quiet()), node.edit)
	put := func(version string) {
		kept, err := trimSPC(apiSPC(version, version))
		require.NoError(t, err)
		require.NoError(t, s.store.Add(kept))
	}
	kept, err := trimPod(apiPod("uid-1"))
	require.NoError(t, err)
	require.NoError(t, s.pods.store.Add(kept))

	s.offer()
	require.Empty(t, node.seen(), "the SPC is not known yet")
	put("1")
	s.offer()
	s.offer()
	require.Len(t, node.seen(), 2, "offered again until the volume is there")
	node.live = true
	s.offer()
	s.offer()
	require.Len(t, node.seen(), 3, "taken once: by now a Mount may have brought a newer one")
	put("2")
	s.offer()
	require.Equal(t, "2", node.seen()[3].Parameters["objects"])
	require.NoError(t, s.pods.store.Delete(kept))
	s.offer()
	require.Empty(t, s.offered, "nothing is kept of pods that are gone")
}

//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	apps "k8s.io/api/apps/v1"
	batch "k8s.io/api/batch/v1"
	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tenure-csi/tenure/test/fixture"
)

// selector is of the labels that template gives.
var selector = &meta.LabelSelector{MatchLabels: map[string]string{"app": "app"}}

func deploymentOf(of core.PodTemplateSpec, replicas int32) *apps.Deployment {
	return &apps.Deployment{ObjectMeta: meta.ObjectMeta{Name: "app"}, Spec: apps.DeploymentSpec{Replicas: &replicas, Selector: selector, Template: of}}
}

// deploy makes a Deployment of the template and waits until all of its pods are available.
func (s *scene) deploy(t *testing.T, of core.PodTemplateSpec, replicas int32, limit time.Duration) *apps.Deployment {
	t.Helper()
	d := deploymentOf(of, replicas)
	s.create(t, d)
	awaitAvailable(t, d, limit)
	return d
}

func awaitAvailable(t *testing.T, d *apps.Deployment, limit time.Duration) {
	t.Helper()
	require.NoError(t, await(t.Context(), limit, func(ctx context.Context) error {
		if err := cluster.Client.Get(ctx, client.ObjectKeyFromObject(d), d); err != nil {
			return err
		}
		if d.Status.AvailableReplicas != *d.Spec.Replicas {
			return fmt.Errorf("%d of %d pods are available", d.Status.AvailableReplicas, *d.Spec.Replicas)
		}
		return nil
	}))
}

func deployment(t *testing.T) {
	s := newScene(t, fixture.ScopeOptions{})
	s.orders(t)
	d := s.deploy(t, template(idle, "orders"), 3, 2*soon)
	s.holds(t, 3)
	one := int32(1)
	d.Spec.Replicas = &one
	require.NoError(t, cluster.Client.Update(t.Context(), d))
	s.holds(t, 1)
	s.remove(t, d)
	s.holds(t, 0)
}

func statefulSet(t *testing.T) {
	s := newScene(t, fixture.ScopeOptions{})
	s.orders(t)
	one := int32(1)
	set := &apps.StatefulSet{
		ObjectMeta: meta.ObjectMeta{Name: "app"},
		Spec:       apps.StatefulSetSpec{Replicas: &one, Selector: selector, ServiceName: "app", Template: template(idle, "orders")},
	}
	s.create(t, set)
	p := &core.Pod{ObjectMeta: meta.ObjectMeta{Namespace: s.namespace, Name: "app-0"}}
	s.awaitRunning(t, p)
	uid, before := p.UID, user(t, p)
	s.remove(t, p)
	require.NoError(t, await(t.Context(), soon, func(ctx context.Context) error {
		switch err := cluster.Client.Get(ctx, client.ObjectKeyFromObject(p), p); {
		case err != nil:
			return err
		case p.UID == uid:
			return fmt.Errorf("pod %s is still the old one", p.Name)
		}
		return nil
	}))
	s.awaitRunning(t, p)
	require.NotEqual(t, before, user(t, p))
	s.holds(t, 1)
	s.remove(t, set)
	s.holds(t, 0)
}

// loginOnce is a pod that tells whom it logged in as, and is done.
func loginOnce() core.PodTemplateSpec {
	of := template("psql -XAtc 'select current_user' >/dev/termination-log", "orders")
	of.Spec.RestartPolicy = core.RestartPolicyNever
	return of
}

// cronJob waits for the next minute's run.
func cronJob(t *testing.T) {
	s := newScene(t, fixture.ScopeOptions{})
	s.orders(t)
	c := &batch.CronJob{
		ObjectMeta: meta.ObjectMeta{Name: "app"},
		Spec:       batch.CronJobSpec{Schedule: "* * * * *", JobTemplate: batch.JobTemplateSpec{Spec: batch.JobSpec{Template: loginOnce()}}},
	}
	s.create(t, c)
	require.NoError(t, await(t.Context(), 2*soon, func(ctx context.Context) error {
		pods, err := s.pods(ctx)
		if err != nil {
			return err
		}
		for _, p := range pods {
			if p.Status.Phase == core.PodSucceeded {
				require.Contains(t, p.Status.ContainerStatuses[0].State.Terminated.Message, s.Name)
				return nil
			}
		}
		return fmt.Errorf("no run of %d has succeeded", len(pods))
	}))
	s.remove(t, c, client.PropagationPolicy(meta.DeletePropagationForeground)) // its runs with it
	s.holds(t, 0)
}

func job(t *testing.T) {
	s := newScene(t, fixture.ScopeOptions{})
	s.orders(t)
	never := int32(0)
	j := &batch.Job{ObjectMeta: meta.ObjectMeta{Name: "app"}, Spec: batch.JobSpec{BackoffLimit: &never, Template: loginOnce()}}
	s.create(t, j)
	require.NoError(t, await(t.Context(), soon, func(ctx context.Context) error {
		if err := cluster.Client.Get(ctx, client.ObjectKeyFromObject(j), j); err != nil {
			return err
		}
		if j.Status.Succeeded != 1 {
			return fmt.Errorf("the job has not succeeded: %+v", j.Status)
		}
		return nil
	}))
	pods, err := s.pods(t.Context())
	require.NoError(t, err)
	require.Len(t, pods, 1, "the pod stays as a record")
	require.Contains(t, pods[0].Status.ContainerStatuses[0].State.Terminated.Message, s.Name)
	// Its volume is unmounted and its directory stays: that counts as the end once
	// the last Mount was answered 2 minutes ago.
	s.holdsWithin(t, 4*time.Minute, 0)
}

func manyPods(t *testing.T) {
	const many = 60
	s := newScene(t, fixture.ScopeOptions{})
	s.orders(t)
	before, err := stack.Vault.Audit()
	require.NoError(t, err)
	d := s.deploy(t, template(idle, "orders"), many, 8*time.Minute)
	after, err := stack.Vault.Audit()
	require.NoError(t, err)
	calls := map[string]int{}
	for _, call := range after[len(before):] {
		if call.Accessor != "" || strings.HasPrefix(call.Path, "auth/kubernetes/login") { // not our own
			calls["all"]++
			calls[call.Path]++
		}
	}
	report.figure("%d pods are Ready after %s; calls of Vault a mount: %.2f (logins %.2f, database credentials %.2f, key-value %.2f)", many, s.lastReady(t),
		float64(calls["all"])/many, float64(calls["auth/kubernetes/login"])/many, float64(calls[s.Creds])/many, float64(calls[s.KV+"/app"])/many)
	require.Equal(t, many, calls[s.Creds], "one credential a pod")
	s.holds(t, many)
	began := time.Now()
	s.remove(t, d)
	s.holds(t, 0)
	report.figure("their users are gone after %s", time.Since(began).Round(time.Second))
}

// lastReady answers the time from the first pod's creation to the last one's Ready, in
// Kubernetes' whole seconds.
func (s *scene) lastReady(t *testing.T) time.Duration {
	t.Helper()
	pods, err := s.pods(t.Context())
	require.NoError(t, err)
	first, last := time.Now(), time.Time{}
	for _, p := range pods {
		if p.CreationTimestamp.Time.Before(first) {
			first = p.CreationTimestamp.Time
		}
		for _, c := range p.Status.Conditions {
			if c.Type == core.PodReady && c.LastTransitionTime.After(last) {
				last = c.LastTransitionTime.Time
			}
		}
	}
	return last.Sub(first)
}

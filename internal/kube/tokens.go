package kube

import (
	"context"
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"

	"github.com/tenure-csi/tenure/provider"
)

// tokenLife is the shortest that the API server gives: a token is used once, at once.
const tokenLife = 10 * time.Minute

// Tokens asks for service account tokens of pods. It implements lease.Identities
// and may be called from many goroutines at once.
type Tokens struct{ Client dynamic.Interface }

// Token implements lease.Identities. The token is bound to the pod: it ends with it,
// and the API server refuses it for a pod that is gone or of another service account.
func (t Tokens) Token(ctx context.Context, of provider.Pod, audience string) (provider.Token, error) {
	request := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
		"metadata": map[string]any{"name": of.ServiceAccount, "namespace": of.Namespace},
		"spec": map[string]any{
			"audiences":         []any{audience},
			"expirationSeconds": int64(tokenLife / time.Second),
			"boundObjectRef":    map[string]any{"apiVersion": "v1", "kind": "Pod", "name": of.Name, "uid": of.UID},
		},
	}}
	answer, err := t.Client.Resource(accountResource).Namespace(of.Namespace).Create(ctx, request, metav1.CreateOptions{}, "token")
	if err != nil {
		return provider.Token{}, fmt.Errorf("requesting a token of service account %s/%s: %w", of.Namespace, of.ServiceAccount, err)
	}
	value, _, _ := unstructured.NestedString(answer.Object, "status", "token")
	text, _, _ := unstructured.NestedString(answer.Object, "status", "expirationTimestamp")
	expires, err := time.Parse(time.RFC3339, text)
	if value == "" || err != nil {
		return provider.Token{}, fmt.Errorf("requesting a token of service account %s/%s: the answer holds none", of.Namespace, of.ServiceAccount)
	}
	return provider.Token{Value: provider.Secret(value), Expires: expires}, nil
}

package examples

import (
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/ext"
	"github.com/stretchr/testify/require"
	yamlv3 "go.yaml.in/yaml/v3"
	admission "k8s.io/api/admissionregistration/v1"
	"sigs.k8s.io/yaml"

	"github.com/tenure-csi/tenure/provider"
)

// perCallLimit is what one expression may cost in an API server
// (k8s.io/apiserver/pkg/apis/cel/config.go).
const perCallLimit = 1_000_000

// policy evaluates a ValidatingAdmissionPolicy as an API server does, without
// types: that is how it treats dyn and custom resources.
type policy struct {
	spec     admission.ValidatingAdmissionPolicySpec
	env      *cel.Env
	compiled map[string]cel.Program
}

func readPolicy(t *testing.T) policy {
	t.Helper()
	all := documents(t, root+"/admission-policy/policy.yaml")
	require.Len(t, all, 2)
	var p admission.ValidatingAdmissionPolicy
	var binding admission.ValidatingAdmissionPolicyBinding
	require.NoError(t, yaml.UnmarshalStrict(all[0], &p))
	require.NoError(t, yaml.UnmarshalStrict(all[1], &binding))
	require.Equal(t, p.Name, binding.Spec.PolicyName)
	require.Equal(t, []admission.ValidationAction{admission.Deny}, binding.Spec.ValidationActions)
	// The libraries and options of Kubernetes 1.30 (k8s.io/apiserver/pkg/cel/environment), those that are used here.
	env, err := cel.NewEnv(
		cel.HomogeneousAggregateLiterals(), cel.EagerlyValidateDeclarations(true), cel.OptionalTypes(), ext.Strings(ext.StringsVersion(0)),
		cel.Variable("object", cel.DynType), cel.Variable("request", cel.DynType), cel.Variable("variables", cel.MapType(cel.StringType, cel.DynType)),
	)
	require.NoError(t, err)
	return policy{p.Spec, env, map[string]cel.Program{}}
}

func (p policy) eval(t *testing.T, expression string, vars map[string]any) any {
	t.Helper()
	program := p.compiled[expression]
	if program == nil {
		ast, issues := p.env.Compile(expression)
		require.NoError(t, issues.Err(), expression)
		var err error
		program, err = p.env.Program(ast, cel.CostLimit(perCallLimit), cel.EvalOptions(cel.OptOptimize))
		require.NoError(t, err, expression)
		p.compiled[expression] = program
	}
	value, _, err := program.Eval(vars)
	require.NoError(t, err, expression)
	return value.Value()
}

// refusals are the messages for an object, nil when the policy lets it through
// or is not about it.
func (p policy) refusals(t *testing.T, resource string, object map[string]any) (messages []string) {
	t.Helper()
	variables := map[string]any{}
	vars := map[string]any{"object": object, "variables": variables, "request": map[string]any{"resource": map[string]any{"resource": resource}}}
	for _, c := range p.spec.MatchConditions {
		if p.eval(t, c.Expression, vars) != true {
			return nil
		}
	}
	for _, v := range p.spec.Variables {
		variables[v.Name] = p.eval(t, v.Expression, vars)
	}
	for _, v := range p.spec.Validations {
		if p.eval(t, v.Expression, vars) == true {
			continue
		}
		message := v.Message
		if v.MessageExpression != "" {
			message = p.eval(t, v.MessageExpression, vars).(string)
		}
		messages = append(messages, message)
	}
	return messages
}

// spc and pod are the two places where parameters can stand.
func spc(name string, parameters map[string]string) map[string]any {
	return map[string]any{"spec": map[string]any{"provider": name, "parameters": parameters}}
}

func pod(csiDriver string, attributes map[string]string) map[string]any {
	return map[string]any{"spec": map[string]any{"volumes": []any{
		map[string]any{"name": "tmp", "emptyDir": map[string]any{}},
		map[string]any{"name": "secrets", "csi": map[string]any{"driver": csiDriver, "volumeAttributes": attributes}},
	}}}
}

const csi = "secrets-store.csi.k8s.io"

func TestPolicy(t *testing.T) {
	p := readPolicy(t)
	const address, identity, verify = "vaultAddress: only https://vault.example.com:8200 may be named", "awsIdentity, identity: ", "vaultSkipTLSVerify: "
	for name, row := range map[string]struct {
		parameters map[string]string
		refused    []string
	}{
		"nothing":                {nil, nil},
		"own Vault":              {map[string]string{"vaultAddress": "https://vault.example.com:8200"}, nil},
		"foreign Vault":          {map[string]string{"vaultAddress": "https://vault.evil.com"}, []string{address}},
		"beginning like the own": {map[string]string{"vaultAddress": "https://vault.example.com:8200.evil.com"}, []string{address}},
		"pod's AWS identity":     {map[string]string{"awsIdentity": "pod"}, nil},
		"the pod's, of EKS":      {map[string]string{"objects": "- {objectName: a, identity: pod-identity}\n- identity: pod-identity\n  objectName: b\n"}, nil},
		"node's AWS identity":    {map[string]string{"awsIdentity": "node"}, []string{identity}},
		"verified":               {map[string]string{"vaultSkipTLSVerify": "false"}, nil},
		"not verified":           {map[string]string{"vaultSkipTLSVerify": "true"}, []string{verify}},
		"not verified, short":    {map[string]string{"vaultSkipTLSVerify": "T"}, []string{verify}},
		"all at once":            {map[string]string{"vaultAddress": "http://x", "awsIdentity": "node", "vaultSkipTLSVerify": "1"}, []string{address, identity, verify}},
		"object of a pod":        {map[string]string{"objects": "- {objectName: a, identity: pod}\n- objectName: b\n  identity: pod\n"}, nil},
		"Vault's identity path":  {map[string]string{"objects": "- {objectName: a, secretPath: identity/oidc/token/a}\n"}, nil},
		"defaults of the node":   {map[string]string{"defaults": "identity: node\n"}, []string{identity}},
	} {
		t.Run(name, func(t *testing.T) {
			for resource, object := range map[string]map[string]any{
				"secretproviderclasses": spc("tenure", row.parameters), "pods": pod(csi, row.parameters),
			} {
				got := p.refusals(t, resource, object)
				require.Len(t, got, len(row.refused), "%s: %v", resource, got)
				for i, want := range row.refused {
					require.Contains(t, got[i], want, resource)
				}
			}
		})
	}
}

// nodes answers whether objects say identity: node, in YAML that the daemon takes:
// it refuses anchors, for one.
func nodes(objects string) bool {
	_, problems := provider.Validate(provider.Request{Attributes: map[string]string{"objects": objects}}, func(provider.Object) error { return nil })
	if slices.ContainsFunc(problems, func(p *provider.Error) bool { return strings.HasPrefix(p.Cause, "can't be read as YAML") }) {
		return false
	}
	var list []map[string]any
	_ = yamlv3.Unmarshal([]byte(objects), &list) // a part can be readable
	return slices.ContainsFunc(list, func(o map[string]any) bool { return o["identity"] == "node" })
}

func TestPolicyRefusesTheNodesIdentityHoweverItIsWritten(t *testing.T) {
	p := readPolicy(t)
	for _, written := range []string{
		"- identity: node", "- {identity: node}", "- {\"identity\": node}", "- {'identity' : 'node'}", "- identity:   node", "- identity:\n    node",
		"- ? identity\n  : node", "- {objectName: a,identity: node}", "- identity: |-\n    node", "- identity: >-\n    node", "- identity: \"n\\u006fde\"",
		"- \"\\u0069dentity\": node", "- \"\\x69dentity\": node", "- \"\\U00000069dentity\": node", "- ? \"iden\\\n    tity\"\n  : node", "- {\"identity\":node}",
		"- identity: !!str node", "- identity: pod\n- identity: node", "- identity: # pod\n    node", "- ? \"iden\\\r\n    tity\"\n  : node",
		"- ? identity # pod\n  : node", "- ? identity\n  # pod\n  : node", "- ? \"iden\\\u2028tity\"\n  : node", "- ? \"iden\\\u0085tity\"\n  : node", "- ? identity\u2029  : node",
		"- ? |-\n    identity\n  : node",
	} {
		require.True(t, nodes(written), "%q is not what it is here for", written)
		require.NotEmpty(t, p.refusals(t, "pods", pod(csi, map[string]string{"objects": written})), "%q", written)
	}
}

// words are what the fuzzer writes YAML with: each byte of its input stands for one.
var words = []string{
	"- ", "identity", "iden", "tity", "node", "pod", ": ", ":", "? ", "\n", "\n  ", "\n    ", " ", "\"", "'", "{", "}", ", ", "# c", "|-", ">-", "\\", "\\x69",
	"\\u0069", "!!str ", "&a ", "*a", "\u2028", "\u0085", "\r", "\t", "<<", "[", "]", "---", "\ufeff",
}

// The policy refuses whatever the daemon's YAML reader takes for identity: node.
func FuzzPolicyRefusesTheNodesIdentity(f *testing.F) {
	f.Add([]byte{0, 1, 6, 4})
	f.Add([]byte{0, 8, 13, 2, 21, 10, 3, 13, 10, 6, 4})
	f.Add([]byte{0, 15, 13, 23, 2, 3, 13, 7, 4, 16})
	f.Fuzz(func(t *testing.T, choice []byte) {
		var b strings.Builder
		for _, c := range choice {
			b.WriteString(words[int(c)%len(words)])
		}
		if nodes(b.String()) {
			require.NotEmpty(t, fuzzed(t).refusals(t, "pods", pod(csi, map[string]string{"objects": b.String()})), "%q", &b)
		}
	})
}

var (
	fuzzOnce   sync.Once
	fuzzPolicy policy
)

func fuzzed(t *testing.T) policy {
	t.Helper()
	fuzzOnce.Do(func() { fuzzPolicy = readPolicy(t) })
	return fuzzPolicy
}

func TestPolicyLetsOthersThrough(t *testing.T) {
	p := readPolicy(t)
	foreign := map[string]string{"vaultAddress": "https://elsewhere", "userAssignedIdentityID": "x"}
	require.Empty(t, p.refusals(t, "secretproviderclasses", spc("azure", foreign)))
	require.Empty(t, p.refusals(t, "pods", pod("other.csi.example.com", foreign)))
	require.Empty(t, p.refusals(t, "pods", map[string]any{"spec": map[string]any{}}))
	require.Empty(t, p.refusals(t, "pods", map[string]any{"spec": map[string]any{"volumes": []any{map[string]any{"csi": map[string]any{"driver": csi}}}}}))
	require.Empty(t, p.refusals(t, "secretproviderclasses", map[string]any{"spec": map[string]any{"provider": "tenure"}}))
	require.NotEmpty(t, p.refusals(t, "secretproviderclasses", spc("vault", foreign)), "the daemon may serve that name, too")
}

// An API server gives an expression up that costs too much, and failurePolicy
// Fail then refuses what is right.
func TestPolicyCanAffordTheLargestParameters(t *testing.T) {
	large := ""
	for range provider.MaxObjects {
		large += "- objectName: a\n  template: " + strings.Repeat("identity ", 430) + "\n"
	}
	require.Greater(t, len(large), 240<<10)
	require.Empty(t, readPolicy(t).refusals(t, "pods", pod(csi, map[string]string{"objects": large})))
}

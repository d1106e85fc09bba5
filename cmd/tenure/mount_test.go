package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/internal/lease"
)

const trySPC = `apiVersion: v1
kind: Pod
---
apiVersion: secrets-store.csi.x-k8s.io/v1
kind: SecretProviderClass
metadata: {name: greeting}
spec:
  provider: tenure
  parameters:
    roleName: app
    objects: |
      - {objectName: hello, secretPath: kv/hello, secretKey: text}
      - {objectName: all/of.json, secretPath: kv/hello, format: json, filePermission: 0400}
`

// jwt is an unsigned service account token.
func jwt(claims map[string]any) string {
	part := func(v any) string {
		raw, _ := json.Marshal(v)
		return base64.RawURLEncoding.EncodeToString(raw)
	}
	return part(map[string]string{"alg": "RS256"}) + "." + part(claims) + ".c2ln"
}

func shopToken() string {
	return jwt(map[string]any{"sub": "system:serviceaccount:shop:web", "aud": []string{"vault"}, "exp": time.Now().Add(time.Hour).Unix()})
}

// try is a directory with what a trial reads.
func try(t *testing.T, spc, token string) (dir string, args []string) {
	t.Helper()
	dir = t.TempDir()
	file, tokenFile := filepath.Join(dir, "spc.yaml"), filepath.Join(dir, "token")
	require.NoError(t, os.WriteFile(file, []byte(spc), 0o600))
	require.NoError(t, os.WriteFile(tokenFile, []byte(token+"\n"), 0o600))
	return dir, []string{"mount", "-f", file, "--token-file", tokenFile}
}

// greeter is a Vault with one KV secret. It answers the requests that it saw.
func greeter(t *testing.T) (addr string, seen func() []string) {
	t.Helper()
	var mu sync.Mutex
	var requests []string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		requests = append(requests, r.Method+" "+r.URL.Path)
		mu.Unlock()
		switch r.URL.Path {
		case "/v1/auth/kubernetes/login":
			_, _ = w.Write([]byte(`{"auth":{"client_token":"hvs.canary","accessor":"acc","lease_duration":3600,"renewable":true,"token_type":"service"}}`))
		case "/v1/auth/token/lookup-self":
			_, _ = w.Write([]byte(`{"data":{"accessor":"mine","ttl":3600,"renewable":true}}`))
		case "/v1/kv/hello":
			_, _ = w.Write([]byte(`{"mount_type":"kv","lease_duration":2764800,"data":{"text":"hi\u001b[2J there"}}`))
		case "/v1/auth/token/revoke-self":
			w.WriteHeader(http.StatusNoContent)
		default:
			w.WriteHeader(http.StatusNotFound)
			_, _ = w.Write([]byte(`{"errors":[]}`))
		}
	}))
	t.Cleanup(srv.Close)
	return srv.URL, func() []string {
		mu.Lock()
		defer mu.Unlock()
		return requests
	}
}

// trials are the private trees on the tmpfs.
func trials(t *testing.T, tmpfs string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(tmpfs, "tenure-mount-*"))
	require.NoError(t, err)
	return found
}

// tmpfs is a directory of the test's own on one.
func tmpfs(t *testing.T) string { return newNode(t).root }

func TestMountShowsAndEnds(t *testing.T) {
	dir, args := try(t, trySPC, shopToken())
	addr, seen := greeter(t)
	shm, link := tmpfs(t), filepath.Join(dir, "link")
	var stdout, stderr bytes.Buffer
	args = append(args, "--vault-addr", addr, link, "--show", "--tmpfs", shm)
	require.Zero(t, command(t.Context(), args, &stdout, &stderr), stderr.String())
	require.Empty(t, stderr.String())
	golden(t, "mount.golden", masked(stdout.String(), link))
	require.NoFileExists(t, link)
	require.Empty(t, trials(t, shm))
	require.Equal(t, []string{"POST /v1/auth/kubernetes/login", "GET /v1/kv/hello", "POST /v1/auth/token/revoke-self"}, seen())
}

// masked replaces what differs from run to run.
func masked(text, link string) []byte {
	lines := strings.Split(strings.ReplaceAll(text, link, "LINK"), "\n")
	for i, line := range lines {
		if _, rest, ok := strings.Cut(line, " UTC: "); ok {
			lines[i] = "NOW: " + rest
		}
		if strings.HasPrefix(line, "shop ") { // when KV is looked at next is drawn
			fields := strings.Fields(line)
			fields[5] = "NEXT"
			lines[i] = strings.Join(fields, "  ")
		}
	}
	text = regexp.MustCompile(`\d+:\d+ `).ReplaceAllString(strings.Join(lines, "\n"), "OWNER ")
	return regexp.MustCompile(` {2,}`).ReplaceAll([]byte(text), []byte("  ")) // widths follow the values
}

// TestMountKeeps also uses a Vault token of a person's own.
func TestMountKeeps(t *testing.T) {
	dir, args := try(t, trySPC, "hvs.mine")
	addr, seen := greeter(t)
	shm, link := tmpfs(t), filepath.Join(dir, "link")
	args[3] = "--vault-token-file"
	var stdout, stderr bytes.Buffer
	require.Zero(t, command(t.Context(), append(args, "--vault-addr", addr, "--keep", "--tmpfs", shm, link), &stdout, &stderr), stderr.String())
	text, err := os.ReadFile(filepath.Join(link, "hello"))
	require.NoError(t, err)
	require.Equal(t, "hi\x1b[2J there", string(text))
	require.Len(t, trials(t, shm), 1)
	require.Contains(t, stdout.String(), "To remove them: rm -r "+trials(t, shm)[0]+" "+link+"\n")
	require.Equal(t, []string{"GET /v1/auth/token/lookup-self", "GET /v1/kv/hello"}, seen(), "somebody's own token is not revoked")
	require.NoError(t, filepath.WalkDir(shm, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			text, readErr := os.ReadFile(path)
			require.NoError(t, readErr)
			require.NotContains(t, string(text), "hvs.mine", path)
		}
		return err
	}))
}

func TestMountRefuses(t *testing.T) {
	shm := tmpfs(t)
	claims := func(more map[string]any) string {
		more["exp"] = time.Now().Add(time.Hour).Unix()
		return jwt(more)
	}
	good := shopToken()
	for _, row := range []struct {
		name, spc, token string
		args             []string
		want             string // of the error, with DIR for the directory
	}{
		{"no SPC", "kind: Pod", good, nil, "reading DIR/spc.yaml: there is no SecretProviderClass in it"},
		{"bad YAML", "kind: SecretProviderClass\na: [", good, nil, "DIR/spc.yaml:2: is no YAML: did not find expected node content; indent with spaces; a chart's templates must be rendered first"},
		{"another provider", strings.Replace(trySPC, "tenure", "azure", 1), good, nil, `reading DIR/spc.yaml: spec.provider of "greeting" is "azure", and the driver would ask that provider; set tenure`},
		{"no JWT", trySPC, "hvs.canary", nil, "reading --token-file: DIR/token holds no service account token; make one with: kubectl create token NAME --namespace default --audience vault"},
		{"another account", trySPC, good, []string{"--service-account=api"}, "reading --token-file: the token is of service account shop/web, not shop/api; make one with: kubectl create token api --namespace shop --audience vault"},
		{
			"another namespace", strings.Replace(trySPC, "name: greeting", "name: greeting, namespace: shop", 1), good,
			[]string{"--namespace=x"},
			"the SecretProviderClass is of namespace shop, and pods of namespace x can't mount it; leave --namespace out",
		},
		{"no tmpfs", trySPC, good, []string{"--tmpfs=/proc"}, "looking at --tmpfs /proc: it is no tmpfs, and secrets must not reach a disk; name a directory of one, such as /dev/shm or below /run"},
		{"DIR is there", trySPC, good, []string{"/proc"}, "linking /proc to the volume: something is there; name another DIR, or remove it first"},
		{"an SPC's mistake", strings.Replace(trySPC, "secretPath: kv/hello, secretKey", "secretPth: kv/hello, secretKey", 1), good, nil, `object "hello", field "secretPth": is no field of an object; did you mean secretPath? | object "hello", field "secretPath": is missing; write the path to read in Vault, like secret/data/app or database/creds/app`},
		{
			"another audience", trySPC, claims(map[string]any{"sub": "system:serviceaccount:shop:web", "aud": "api"}), nil,
			`object "hello", field "audience": the pod's service account token for audience "vault" did not come with the Mount call (audiences that came: "api"); ` +
				`in the CSIDriver secrets-store.csi.k8s.io set tokenRequests: [{audience: "vault"}], beside those it has, and requiresRepublish: true` +
				"\ntenure mount: here, without a cluster: make one with: kubectl create token web --namespace shop --audience vault",
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			dir, args := try(t, row.spc, row.token)
			var stdout, stderr bytes.Buffer
			args = append(args, "--vault-addr=http://127.0.0.1:1", "--tmpfs="+shm)
			require.Equal(t, exitFailed, command(t.Context(), append(args, row.args...), &stdout, &stderr))
			require.Equal(t, "tenure mount: "+row.want+"\n", strings.ReplaceAll(stderr.String(), dir, "DIR"))
			require.Empty(t, stdout.String())
			require.Empty(t, trials(t, shm))
		})
	}
}

// TestMountInterrupted: what waits for a Vault that is away ends at once.
func TestMountInterrupted(t *testing.T) {
	_, args := try(t, trySPC, shopToken())
	shm := tmpfs(t)
	ctx, cancel := context.WithCancel(t.Context())
	addr := away(t, cancel)
	var stdout, stderr bytes.Buffer
	require.Equal(t, exitFailed, command(ctx, append(args, "--vault-addr", addr, "--tmpfs", shm), &stdout, &stderr))
	require.Contains(t, stderr.String(), "tenure mount: interrupted before the volume was written\n")
	require.Empty(t, trials(t, shm))
}

// away is a Vault that is sealed; asked calls f.
func away(t *testing.T, asked func()) string {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = w.Write([]byte(`{"errors":["Vault is sealed"]}`))
		asked()
	}))
	t.Cleanup(srv.Close)
	return srv.URL
}

func TestMountWithoutAnAddressOfVault(t *testing.T) {
	_, args := try(t, trySPC, shopToken())
	var stdout, stderr bytes.Buffer
	require.Equal(t, exitFailed, command(t.Context(), append(args, "--tmpfs="+tmpfs(t)), &stdout, &stderr))
	require.Contains(t, stderr.String(), `field "vaultAddress": no Vault address is set; `)
	require.Contains(t, stderr.String(), "\ntenure mount: here, without a cluster: give --vault-addr, or set VAULT_ADDR\n")
}

func TestMountCommandLines(t *testing.T) {
	for _, row := range []struct {
		name string
		args []string
		want []string
	}{
		{"nothing", nil, []string{
			"-f is missing; name the file with the SecretProviderClass",
			"there is nothing to log in with; give a service account's --token-file, or a --vault-token-file",
		}},
		{"a file without -f", []string{"--token-file=a", "spc.yaml"}, []string{"-f is missing, and spc.yaml is taken for DIR; name the file with the SecretProviderClass after -f"}},
		{"two tokens", []string{"-f=x", "--token-file=a", "--vault-token-file=b"}, []string{"--token-file and --vault-token-file are both given; choose one"}},
		{"whose Vault", []string{"-f=x", "--vault-token-file=b"}, []string{"--vault-token-file needs --vault-addr, so that nothing but your own choice decides where the token is sent"}},
		{"the SPC's Vault", []string{"-f=x", "--vault-token-file=b", "--vault-addr=http://v", "--allowed-vault-addrs=http://w"}, []string{
			"--allowed-vault-addrs would let the SecretProviderClass choose where your Vault token is sent; leave it out",
		}},
		{"one standard input", []string{"-f=-", "--token-file=-"}, []string{"- is given twice, and the standard input can be read once; put one of them into a file"}},
		{"two directories", []string{"-f=x", "a", "--watch", "b"}, []string{`unexpected argument "b"`}},
	} {
		t.Run(row.name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			require.Equal(t, exitUsage, command(t.Context(), append([]string{"mount"}, row.args...), &stdout, &stderr))
			require.Equal(t, "tenure mount: "+strings.Join(row.want, "\ntenure mount: ")+"\nTry: tenure mount --help\n", stderr.String())
		})
	}
}

func TestMountUsesNoTokenOfTheEnvironment(t *testing.T) {
	o, err := parseMount([]string{"-f=x", "a", "--vault-token-file=b"}, []string{"VAULT_TOKEN=hvs.canary", "VAULT_ADDR=https://v"}, nil)
	require.NoError(t, err)
	require.True(t, o.deaf)
	require.Equal(t, "a", o.dir)
	require.Equal(t, []string{"https://v"}, o.vault.addrs)
}

func TestChoose(t *testing.T) {
	spc := func(name, spec string) string {
		return "apiVersion: secrets-store.csi.x-k8s.io/v1\nkind: SecretProviderClass\nmetadata: {name: " + name + "}\nspec: " + spec + "\n---\n"
	}
	two := spc("a", "{provider: tenure}") + spc("b", "{provider: vault, parameters: {roleName: x}}")
	dump := "apiVersion: v1\nkind: List\nitems:\n- " + strings.ReplaceAll(strings.TrimSuffix(spc("a", "{provider: tenure}"), "---\n"), "\n", "\n  ")
	for _, row := range []struct{ name, text, choice, want, error string }{
		{"the only one", trySPC, "", "greeting", ""},
		{"named", two, "b", "b", ""},
		{"of kubectl's list", dump, "", "a", ""},
		{"several", two, "", "", "reading f.yaml: there are several SecretProviderClasses in it (a, b); choose one with --name"},
		{"twice", two + two, "a", "", "reading f.yaml: there are several SecretProviderClasses in it (a, b, a, b); choose one with --name"},
		{"unknown", two, "c", "", `reading f.yaml: there is no SecretProviderClass "c" in it, but a, b; correct --name`},
		{"empty", "", "", "", "reading f.yaml: there is no SecretProviderClass in it"},
		{"another group", strings.Replace(spc("a", "{}"), "secrets-store", "x", 1), "", "", "reading f.yaml: there is no SecretProviderClass in it"},
		{"misplaced", spc("a", "{provider: tenure, objects: x}"), "", "", `f.yaml:4: default/a: field "spec.objects": is no field that the API server knows; put what the provider reads below spec.parameters`},
		{"boolean", spc("a", "{parameters: {vaultSkipTLSVerify: true}}"), "", "", `f.yaml:4: default/a: field "vaultSkipTLSVerify": is not a string; put the value in quotes`},
		{"list", spc("a", "{parameters: {objects: [{objectName: x}]}}"), "", "", `f.yaml:4: default/a: field "objects": is not a string; write | behind objects: and leave the lines below as they are`},
		{"text", spc("a", "hello"), "", "", "f.yaml:1: is no SecretProviderClass: line 4: a single value stands where a mapping belongs; write each field in the type that the API server takes; render a chart's templates first"},
		{"parameters", spc("a", "{parameters: hello}"), "", "", "f.yaml:1: is no SecretProviderClass: line 4: a single value stands where a mapping belongs; write each field in the type that the API server takes; render a chart's templates first"},
		{"tab", "kind: SecretProviderClass\nspec:\n\tprovider: tenure\n", "", "", "f.yaml:3: is no YAML: a tab stands in the indentation; indent with spaces; a chart's templates must be rendered first"},
	} {
		t.Run(row.name, func(t *testing.T) {
			got, err := choose("f.yaml", []byte(row.text), row.choice)
			if row.error != "" {
				require.EqualError(t, err, row.error)
				return
			}
			require.NoError(t, err)
			require.Equal(t, row.want, got.Metadata.Name)
		})
	}
}

func TestChanges(t *testing.T) {
	now := time.Date(2026, 11, 21, 21, 0, 0, 0, time.Local)
	one := func(id int, end time.Duration, why lease.Reason, problem string) lease.VolumeStatus {
		l := lease.LeaseStatus{ID: id, Objects: []string{"db"}, State: lease.Live, Reason: why, Problem: problem}
		if end != 0 {
			l.Expires = now.Add(end)
		}
		if end < 0 {
			l.State = lease.Expired
		}
		return lease.VolumeStatus{Leases: []lease.LeaseStatus{l}}
	}
	var out bytes.Buffer
	was := one(1, time.Minute, lease.First, "")
	for _, row := range []struct {
		name    string
		was, is lease.VolumeStatus
	}{
		{"nothing", was, was},
		{"renewed", was, one(1, time.Hour, lease.First, "")},
		{"shortened", one(1, time.Hour, lease.First, ""), was},
		{"trouble", was, one(1, time.Minute, lease.First, "Vault is sealed")},
		{"trouble goes on", one(1, time.Minute, lease.First, "Vault is sealed"), one(1, time.Minute, lease.First, "Vault is sealed")},
		{"expired", was, one(1, -time.Second, lease.First, "")},
		{"expired already", one(1, -time.Second, lease.First, ""), one(1, -time.Second, lease.First, "")},
		{"scheduled", was, one(2, time.Hour, lease.Scheduled, "")},
		{"truncated", was, one(2, time.Hour, lease.Truncated, "")},
		{"lost", was, one(2, time.Hour, lease.Lost, "")},
		{"token", was, one(2, time.Hour, lease.TokenEnd, "")},
		{"spec", was, one(2, time.Hour, lease.SpecEdit, "")},
		{"content", one(1, 0, lease.First, ""), one(2, 0, lease.Content, "")},
		{"volume", was, lease.VolumeStatus{Problem: "no fresh token", Leases: was.Leases}},
	} {
		out.WriteString(row.name + "\n")
		for _, line := range changes(row.was, row.is, now) {
			out.WriteString("  " + line + "\n")
		}
	}
	golden(t, "changes.golden", out.Bytes())
}

// TestMountAsksAWS also has nothing to give back: it says what lives on.
func TestMountAsksAWS(t *testing.T) {
	spc := strings.Replace(trySPC, "roleName: app", "mountPath: /secrets", 1)
	spc = spc[:strings.Index(spc, "      - {")] + "      - {objectName: aws, source: aws-sts, roleArn: 'arn:aws:iam::123456789012:role/app', format: aws-credential-process}\n"
	var form url.Values
	sts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		form = r.PostForm
		_, _ = w.Write([]byte("<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>ASIA</AccessKeyId><SecretAccessKey>s</SecretAccessKey>" +
			"<SessionToken>t</SessionToken><Expiration>" + time.Now().Add(time.Hour).UTC().Format(time.RFC3339) + "</Expiration></Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"))
	}))
	t.Cleanup(sts.Close)
	claims := map[string]any{"sub": "system:serviceaccount:shop:web", "aud": []string{"sts.amazonaws.com"}, "exp": time.Now().Add(time.Hour).Unix()}
	shm := tmpfs(t)
	_, args := try(t, spc, jwt(claims))
	args = append(args, "--tmpfs", shm, "--aws-sts-endpoint", sts.URL, "--aws-region=eu-central-1", "--vault-addr=http://127.0.0.1:1")
	var stdout, stderr bytes.Buffer
	require.Zero(t, command(t.Context(), append(args, "--show"), &stdout, &stderr), stderr.String())
	require.Equal(t, jwt(claims), form.Get("WebIdentityToken"))
	require.Contains(t, stdout.String(), "credential_process = /bin/cat /secrets/aws/credentials.json\n")
	require.Regexp(t, `This can't be ended early:\n  what arn:aws:iam::123456789012:role/app gave, which has no lease lives until `, stdout.String())
	require.Empty(t, trials(t, shm))

	claims["aud"] = "vault"
	_, again := try(t, spc, jwt(claims))
	stderr.Reset()
	require.Equal(t, exitFailed, command(t.Context(), append(again, args[5:]...), &stdout, &stderr))
	require.Contains(t, stderr.String(), "make one with: kubectl create token web --namespace shop --audience sts.amazonaws.com\n")
}

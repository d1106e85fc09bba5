package integration

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/test/fixture"
)

// TestKVEdit edits a secret below a volume that also holds a credential.
func TestKVEdit(t *testing.T) {
	t.Parallel()
	s := newSite(t, fixture.ScopeOptions{})
	kv := s.versioned(t)
	s.allow(t, kv+"/*")
	ctx := t.Context()
	require.NoError(t, stack.Vault.WriteKV2(ctx, kv, "app", map[string]any{"password": "one"}))
	require.NoError(t, stack.Vault.WriteKV1(ctx, s.KV, "other", map[string]any{"password": "still"}))
	v := s.volume(t, s.db("db"),
		"{objectName: value, secretPath: "+kv+"/data/app, secretKey: password, refreshInterval: 10s}",
		"{objectName: whole, secretPath: "+kv+"/data/app}",
		"{objectName: other, secretPath: "+s.KV+"/other, secretKey: password, refreshInterval: 10s}")
	versions := mount(t, v)
	require.Len(t, versions, 4)
	generation, err := v.Generation()
	require.NoError(t, err)
	whole := read(t, v, "whole")
	require.Contains(t, whole, "request_id")
	for range 100 {
		require.Equal(t, versions, mount(t, v))
	}
	looks := func(context.Context) (bool, error) {
		n, err := stack.Vault.AuditCount(kv+"/data/app", "read")
		return n >= 3, err
	}
	require.NoError(t, fixture.Eventually(within(t, time.Minute), true, looks), "two looks after the first read")
	require.Equal(t, versions, mount(t, v))
	require.Equal(t, whole, read(t, v, "whole"), "each look has a request_id of its own")
	now, err := v.Generation()
	require.NoError(t, err)
	require.Equal(t, generation, now, "nothing was written")

	credential, other := inode(t, v, "db"), inode(t, v, "other")
	require.NoError(t, stack.Vault.WriteKV2(ctx, kv, "app", map[string]any{"password": "two"}))
	edited := time.Now()
	require.NoError(t, fixture.Eventually(within(t, time.Minute), "two", func(context.Context) (string, error) {
		text, err := v.Read("value")
		return string(text), err
	}))
	figures.note(t, "KV edit: in the file after %v with refreshInterval 10s", time.Since(edited).Round(time.Millisecond))
	said, err := s.status(t.Context(), v)
	require.NoError(t, err)
	for _, l := range said.Leases {
		if l.Kind == "polled" {
			require.LessOrEqual(t, time.Until(l.Next), 11*time.Second, "refreshInterval and its tenth of jitter")
		}
	}
	require.Contains(t, read(t, v, "whole"), `"two"`)
	require.Equal(t, credential, inode(t, v, "db"))
	require.Equal(t, other, inode(t, v, "other"))
	edit := mount(t, v)
	for _, id := range []string{"db", "other"} {
		require.Equal(t, versions[id], edit[id], id)
	}
	for _, id := range []string{"value", "whole"} {
		require.NotEqual(t, versions[id], edit[id], id)
	}
	s.requireAsked(t, 1, 1)
	s.requireHeld(t, 1, 1)
}

// TestObjectsOnOneRead tells reads apart by their arguments, and shares equal ones.
func TestObjectsOnOneRead(t *testing.T) {
	t.Parallel()
	s := newSite(t, fixture.ScopeOptions{})
	pki := s.certificates(t, false)
	s.allow(t, pki)
	issue := func(name, key, common string) string {
		return "{objectName: " + name + ", secretPath: " + pki + ", method: PUT, secretKey: " + key + ", secretArgs: {common_name: " + common + "}}"
	}
	credential := func(name, key string) string {
		return "{objectName: " + name + ", secretPath: " + s.Creds + ", secretKey: " + key + "}"
	}
	v := s.mounted(t, issue("a.crt", "certificate", "a.example.com"), issue("a.key", "private_key", "a.example.com"),
		issue("b.crt", "certificate", "b.example.com"), credential("user", "username"), credential("password", "password"))
	_, err := tls.X509KeyPair([]byte(read(t, v, "a.crt")), []byte(read(t, v, "a.key")))
	require.NoError(t, err, "certificate and key are of one answer")
	require.Equal(t, "a.example.com", commonName(t, read(t, v, "a.crt")))
	require.Equal(t, "b.example.com", commonName(t, read(t, v, "b.crt")))
	require.Equal(t, 2, asked(t, pki, "update"), "certificates issued")
	require.NoError(t, stack.Postgres.Login(t.Context(), read(t, v, "user"), read(t, v, "password")))
	s.requireAsked(t, 1, 1)
	s.requireHeld(t, 1, 1)
}

func commonName(t *testing.T, text string) string {
	t.Helper()
	block, _ := pem.Decode([]byte(text))
	require.NotNil(t, block)
	certificate, err := x509.ParseCertificate(block.Bytes)
	require.NoError(t, err)
	return certificate.Subject.CommonName
}

// TestKindsOfSecrets reads what else Vault has: both key-value engines, nested
// data, and a path that takes a PUT.
func TestKindsOfSecrets(t *testing.T) {
	t.Parallel()
	s := newSite(t, fixture.ScopeOptions{})
	kv, ctx := s.versioned(t), t.Context()
	s.allow(t, kv+"/*", "sys/tools/random")
	nested := map[string]any{"text": "hello", "yes": true, "tree": map[string]any{"list": []any{1, "two"}}}
	require.NoError(t, stack.Vault.WriteKV2(ctx, kv, "app", nested))
	require.NoError(t, stack.Vault.WriteKV1(ctx, s.KV, "app", map[string]any{"text": "old", "binary": "AP8=", "big": json.Number("12345678901234567890")}))
	before := asked(t, "sys/tools/random", "update")
	v := s.mounted(t,
		"{objectName: v2/text, secretPath: /v1/"+kv+"/data/app, secretKey: text}",
		"{objectName: v2/tree, secretPath: "+kv+"/data/app, secretKey: tree}",
		"{objectName: v2/all, secretPath: "+kv+"/data/app, format: json}",
		"{objectName: v2/made, secretPath: "+kv+"/data/app, format: template, template: '{{.Data.text}} {{range .Data.tree.list}}{{.}},{{end}} {{toJson .Data.tree}} {{index .Data \"tree\" \"list\" 1}}'}",
		"{objectName: v2/first, secretPath: '"+kv+"/data/app?version=1', secretKey: text}",
		"{objectName: v1/text, secretPath: "+s.KV+"/app, secretKey: text}",
		"{objectName: v1/big, secretPath: "+s.KV+"/app, secretKey: big}",
		"{objectName: v1/binary, secretPath: "+s.KV+"/app, secretKey: binary, encoding: base64}",
		"{objectName: random, secretPath: sys/tools/random, method: PUT, secretArgs: {bytes: 16, format: hex}, secretKey: random_bytes}")
	for file, want := range map[string]string{
		"v2/made": `hello 1,two, {"list":[1,"two"]} two`, "v2/text": "hello", "v2/tree": `{"list":[1,"two"]}`, "v2/first": "hello",
		"v1/text": "old", "v1/big": "12345678901234567890", "v1/binary": "\x00\xff",
	} {
		require.Equal(t, want, read(t, v, file), file)
	}
	require.JSONEq(t, `{"text":"hello","yes":true,"tree":{"list":[1,"two"]}}`, read(t, v, "v2/all"))
	require.Len(t, read(t, v, "random"), 32)
	mount(t, v)
	require.Equal(t, 1, asked(t, "sys/tools/random", "update")-before, "what a PUT made is not made again")

	_, err := s.volume(t, "{objectName: deep, secretPath: "+kv+"/data/app, secretKey: tree.list}").Mount(ctx)
	require.ErrorContains(t, err, `object "deep", field "secretKey"`, "a key is one of the top level")
}

// TestStaticRole follows a password that Vault changes every ten seconds.
func TestStaticRole(t *testing.T) {
	t.Parallel()
	s := newSite(t, fixture.ScopeOptions{})
	ctx, user := t.Context(), "static_"+s.Name
	admin, err := stack.Postgres.Admin(ctx)
	require.NoError(t, err)
	_, err = admin.Exec(ctx, `CREATE ROLE "`+user+`" LOGIN`)
	require.NoError(t, err)
	require.NoError(t, admin.Close(ctx))
	_, err = stack.Vault.Client().Logical().WriteWithContext(ctx, "db-"+s.Name+"/static-roles/fixed", map[string]any{
		"db_name": "postgres", "username": user, "rotation_period": "10s",
	})
	require.NoError(t, err)
	path := "db-" + s.Name + "/static-creds/fixed"
	s.allow(t, path)
	v := s.mounted(t, "{objectName: db.json, secretPath: "+path+", format: json}")

	type secret struct {
		Username, Password string
		Rotated            time.Time `json:"last_vault_rotation"`
	}
	look := func() (now secret) {
		require.NoError(t, json.Unmarshal([]byte(read(t, v, "db.json")), &now))
		return now
	}
	begin, last, lag := time.Now(), look(), time.Hour
	require.Equal(t, user, last.Username)
	for rotations := 0; rotations < 3 || lag > 4*time.Second; rotations++ {
		require.NoError(t, fixture.Eventually(within(t, 2*time.Minute), true, func(ctx context.Context) (bool, error) {
			now := look()
			return now.Password != last.Password, stack.Postgres.Login(ctx, now.Username, now.Password)
		}))
		last = look()
		lag = min(lag, time.Since(last.Rotated)) // a busy machine may show one rotation late, not each
	}
	figures.note(t, "static role: the file followed a rotation after %v", lag.Round(time.Millisecond))
	most := 3 * (1 + int(time.Since(begin)/(10*time.Second)))
	require.LessOrEqual(t, asked(t, path, "read"), most, "looked at after rotations, not all the time")
}

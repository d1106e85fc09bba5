package integration

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/test/fixture"
)

// TestChangedSPC edits the SecretProviderClass of a live volume, badly and well.
func TestChangedSPC(t *testing.T) {
	t.Parallel()
	s := newSite(t, fixture.ScopeOptions{TTL: 20 * time.Second, MaxTTL: time.Hour})
	s.allow(t, "nosuch/*")
	require.NoError(t, stack.Vault.WriteKV1(t.Context(), s.KV, "app", map[string]any{"k": "v"}))
	for _, name := range []string{"a", "b"} {
		require.NoError(t, stack.Vault.WriteKV1(t.Context(), s.KV, name, map[string]any{"k": "of " + name}))
	}
	value := func(name string) string {
		return fmt.Sprintf("{objectName: %s, secretPath: %s/%s, secretKey: k}", name, s.KV, name)
	}
	second := strings.Replace(s.db("second"), s.Creds, `"`+s.Creds+`?again=1"`, 1) // a read of its own
	good := list(s.db("db"), second, value("a"))
	v := s.volumeOf(t, newPod(), s.SPC(good))
	begin := time.Now()
	versions := mount(t, v)
	generation, err := v.Generation()
	require.NoError(t, err)
	s.requireHeld(t, 2, 1)

	tests := []struct {
		name, objects string
		problem       []string
	}{
		{"no engine there", list(s.db("db"), "{objectName: x, secretPath: nosuch/a}"), []string{`object "x"`, "no secrets engine is mounted there", "correct secretPath"}},
		{"nothing there", list(s.db("db"), "{objectName: x, secretPath: "+s.KV+"/nothing}"), []string{`object "x"`, "nothing is there", "write the secret"}},
		{"denied", list(s.db("db"), "{objectName: x, secretPath: secret/data/theirs}"), []string{`object "x"`, "permission denied", `path "secret/data/theirs" { capabilities = ["read"] }`}},
		{"broken YAML", "[{objectName: x", []string{`field "objects"`, "can't be read as YAML"}},
		{"empty entry", list(s.db("db"), "~"), []string{`object "#2"`, "is empty"}},
		{"template that can't be parsed", list("{objectName: x, secretPath: " + s.KV + "/app, format: template, template: '{{ if }}'}"), []string{`object "x"`, `field "template"`}},
		{"template that needs what is not there", list("{objectName: x, secretPath: " + s.KV + "/app, format: template, template: '{{ .nothing }}'}"), []string{`object "x"`, `field "template"`}},
		{"missing key", list("{objectName: x, secretPath: " + s.KV + "/app, secretKey: nothing}"), []string{`object "x"`, `field "secretKey"`}},
	}
	for _, tt := range tests { // one after the other: all edit one volume
		t.Run(tt.name, func(t *testing.T) {
			v.Attributes["objects"] = tt.objects
			for range 3 {
				require.Equal(t, versions, mount(t, v))
			}
			now, err := v.Generation()
			require.NoError(t, err)
			require.Equal(t, generation, now, "no file was touched")
			said, err := s.status(t.Context(), v)
			require.NoError(t, err)
			require.Contains(t, said.Problem, "the old files stay")
			for _, part := range tt.problem {
				require.Contains(t, said.Problem, part)
			}
		})
	}
	s.requireHeld(t, 2, 1) // the first token was new enough for each edit
	values := service(read(t, v, "db"))
	requireRenewed(t, values["user"], begin.Add(25*time.Second)) // past the credential's first life
	require.NoError(t, stack.Postgres.Login(t.Context(), values["user"], values["password"]))

	v.Attributes["objects"] = good
	require.Equal(t, versions, mount(t, v))
	said, err := s.status(t.Context(), v)
	require.NoError(t, err)
	require.Empty(t, said.Problem, "the edit was taken back")

	db, a := inode(t, v, "db"), inode(t, v, "a")
	v.Attributes["objects"] = list(s.db("db"), value("a"), value("b"))
	edit := mount(t, v)
	require.Equal(t, versions["db"], edit["db"])
	require.Contains(t, edit, "b")
	require.NotContains(t, edit, "second")
	require.Equal(t, "of b", read(t, v, "b"))
	require.Equal(t, db, inode(t, v, "db"))
	require.Equal(t, a, inode(t, v, "a"))
	files, err := v.Files()
	require.NoError(t, err)
	require.Equal(t, []string{"a", "b", "db"}, files)
	s.requireHeld(t, 1, 1) // what was removed is ended alone, under a token that lives on
	require.NoError(t, stack.Postgres.Login(t.Context(), values["user"], values["password"]), "what did not change lives on")
	reads, err := s.Reads()
	require.NoError(t, err)
	require.Equal(t, 2, reads, "no edit made a credential")
}

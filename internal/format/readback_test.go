package format

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/provider"
)

// hostile makes values out of what readers stumble over.
func hostile(r *rand.Rand) string {
	parts := []string{
		"'", `"`, "\n", "\r", "\t", " ", "$", "${HOME}", "$(id)", "`id`", ":", "%", "%00", "%41", "#", ";", `\`, `\n`, `'\''`, "=", "[", "]",
		"@", "/", "?", "&", "+", ",", "!", "*", "~", "a", "Z9", "ä", "☃", "\u2028", "\xff", "\x81\x88", "\xc3", "\x00", "\x01", "\x7f", "{{", "-----BEGIN", "<>",
	}
	var b strings.Builder
	for range r.IntN(9) {
		b.WriteString(parts[r.IntN(len(parts))])
	}
	return b.String()
}

// sourced gives the variables as a shell has them after it read the file.
func sourced(t *testing.T, shell string, file []byte, names []string) []string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "env")
	require.NoError(t, os.WriteFile(path, file, 0o600))
	script := `. "$0"; printf '%s\0' "$` + strings.Join(names, `" "$`) + `"`
	cmd := exec.Command(shell, "-euc", script, path)
	cmd.Env = []string{"LC_ALL=C.UTF-8"}
	out, err := cmd.Output()
	require.NoError(t, err)
	values := strings.Split(string(out), "\x00")
	return values[:len(values)-1]
}

func TestEnvReadByShells(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	data, names, want := map[string]any{}, []string{}, []string{}
	for i := range 500 {
		v := strings.ReplaceAll(hostile(r), "\x00", "")
		if i == 0 {
			v = strings.Repeat("'\n", 1<<16)
		}
		name := fmt.Sprintf("V_%d", i)
		data[name], names, want = v, append(names, name), append(want, v)
	}
	rendered, err := Render(provider.Object{Name: "x", Format: "env"}, Secret{Data: data})
	require.NoError(t, err)
	for _, shell := range []string{"sh", "dash", "bash", "ksh"} {
		path, err := exec.LookPath(shell)
		if err != nil && shell != "sh" {
			continue
		}
		require.NoError(t, err)
		require.Equal(t, want, sourced(t, path, rendered.Files[0].Data, names), shell)
	}
}

// A name that passes can be assigned, and keeps its value, in each shell that is here.
func TestEnvNamesAreFree(t *testing.T) {
	for _, shell := range []string{"sh", "bash"} {
		path, err := exec.LookPath(shell)
		if err != nil {
			continue
		}
		// The variables that a fresh shell has of itself, and the special ones it does not list.
		out, err := exec.Command(path, "-c", "set").Output()
		require.NoError(t, err)
		names := []string{"_", "LINENO", "RANDOM", "SECONDS", "SRANDOM", "EPOCHREALTIME", "HISTCMD", "GROUPS", "FUNCNAME", "OPTARG", "PS4", "HOME", "PWD", "user", "if", "in"}
		for line := range strings.Lines(string(out)) {
			if name, _, ok := strings.Cut(line, "="); ok && shellName.MatchString(name) {
				names = append(names, name)
			}
		}
		for _, name := range names {
			r, err := Render(provider.Object{Name: "x", Format: "env"}, Secret{Data: map[string]any{name: "x y", "Z": "after"}})
			if err != nil {
				require.True(t, shellOwn.MatchString(name))
				continue
			}
			require.Equal(t, []string{"x y", "after"}, sourced(t, path, r.Files[0].Data, []string{name, "Z"}), "%s: %s", shell, name)
		}
	}
}

func FuzzEnv(f *testing.F) {
	f.Add("KEY", `it's "$HOME" \ `+"\n")
	f.Add("_a", "\x81'\xff")
	f.Fuzz(func(t *testing.T, key, value string) {
		r, err := Render(provider.Object{Name: "x", Format: "env"}, Secret{Data: map[string]any{key: value}})
		if err != nil {
			require.True(t, strings.Contains(value, "\x00") || !shellName.MatchString(key) || shellOwn.MatchString(key))
			return
		}
		require.Equal(t, []string{value}, sourced(t, "sh", r.Files[0].Data, []string{key}))
	})
}

// json: whatever JSON the backend sends, the file is that JSON again.
func FuzzJSON(f *testing.F) {
	f.Add(`{"a":1e400,"b":[{"c":"<\u2028>"}],"":null}`)
	f.Add(kv2Body)
	f.Fuzz(func(t *testing.T, body string) {
		read := func(b []byte) (data map[string]any, err error) {
			d := json.NewDecoder(bytes.NewReader(b))
			d.UseNumber()
			return data, d.Decode(&data)
		}
		data, err := read([]byte(body))
		if err != nil || len(data) == 0 {
			return
		}
		for _, o := range []provider.Object{{Name: "x", Format: "json"}, {Name: "x", Format: "template", Template: "{{toJson .Data}}"}} {
			r, err := Render(o, Secret{Data: data})
			if err != nil { // a template writes less than what may be stored
				require.True(t, o.Format == "template" && len(body) > maxOutput/6)
				continue
			}
			back, err := read(r.Files[0].Data)
			require.NoError(t, err)
			require.Equal(t, data, back)
			require.Equal(t, o.Format == "json", bytes.Contains(r.Files[0].Data, []byte("\n")), "a line of JSON ends at its newline")
		}
	})
}

func TestJSONRefusesWhatItWouldChange(t *testing.T) {
	for _, v := range []any{"\xff", []any{"\xff"}, map[string]any{"\xff": 1}, map[string]any{"a": []any{"\xc3"}}} {
		_, err := Render(provider.Object{Name: "x", Format: "json"}, Secret{Data: map[string]any{"v": v}})
		require.ErrorContains(t, err, "not UTF-8")
		if _, isString := v.(string); !isString {
			_, err = Render(provider.Object{Name: "x", Format: "keys"}, Secret{Data: map[string]any{"v": v}})
			require.ErrorContains(t, err, "not UTF-8")
		}
	}
}

// raw and keys give the bytes of any string.
func FuzzRawAndKeys(f *testing.F) {
	f.Add("key", "\x00\xff\n")
	f.Add("..data", "v")
	f.Fuzz(func(t *testing.T, key, value string) {
		s := Secret{Data: map[string]any{key: value}}
		r, err := Render(provider.Object{Name: "x", Format: "raw"}, s)
		require.NoError(t, err)
		require.Equal(t, []File{{"x", []byte(value)}}, r.Files)
		r, err = Render(provider.Object{Name: "x", Format: "keys"}, s)
		if err == nil {
			require.Equal(t, []File{{"x/" + key, []byte(value)}}, r.Files)
			require.True(t, validPath(key))
			require.NotContains(t, key, "/")
		}
	})
}

// readService is libpq 15's reader of service files by its documented rules and
// those of its source, written for this test: lines below 1023 bytes with their
// newline, trimmed at both ends; "#" and empty lines skipped; a section's lines
// are split at the first "="; the first of a keyword counts; NUL ends a line.
func readService(file []byte, service string) (map[string]string, error) {
	values, found := map[string]string{}, false
	for line := range strings.Lines(string(file)) {
		if len(line) >= 1023 {
			return nil, errors.New("line too long")
		}
		line, _, _ = strings.Cut(line, "\x00")
		line = strings.Trim(line, " \t\n\v\f\r")
		switch {
		case line == "" || line[0] == '#':
		case line[0] == '[':
			if found {
				return values, nil
			}
			found = strings.HasPrefix(line[1:], service+"]")
		case found:
			key, value, ok := strings.Cut(line, "=")
			if !ok || key == "service" || strings.HasPrefix(line, "ldap") {
				return nil, errors.New("syntax error")
			}
			if _, set := values[key]; !set {
				values[key] = value
			}
		}
	}
	if !found {
		return nil, errors.New("no such service")
	}
	return values, nil
}

// readURI is libpq's reader: nothing but percent-encoding is undone.
func readURI(text string) (map[string]string, error) {
	rest, ok := strings.CutPrefix(text, "postgresql://")
	login, rest, ok2 := strings.Cut(rest, "@")
	server, rest, ok3 := strings.Cut(rest, "/")
	dbname, query, _ := strings.Cut(rest, "?")
	user, password, ok4 := strings.Cut(login, ":")
	if !ok || !ok2 || !ok3 || !ok4 {
		return nil, errors.New("no connection URI")
	}
	var hosts, ports []string
	for h := range strings.SplitSeq(server, ",") {
		port := ""
		if i := strings.LastIndex(h, ":"); i >= 0 && !strings.HasSuffix(h, "]") {
			h, port = h[:i], h[i+1:]
		}
		hosts, ports = append(hosts, strings.Trim(h, "[]")), append(ports, port)
	}
	values := map[string]string{"host": strings.Join(hosts, ","), "port": strings.Join(ports, ","), "dbname": dbname, "user": user, "password": password}
	for param := range strings.SplitSeq(query, "&") {
		if key, value, ok := strings.Cut(param, "="); ok {
			values[key] = value
		}
	}
	for key, value := range values {
		decoded, err := url.PathUnescape(value)
		if err != nil || strings.Contains(decoded, "\x00") || strings.ContainsAny(value, " \t\n") {
			return nil, errors.New("invalid percent-encoding")
		}
		values[key] = decoded
	}
	return values, nil
}

func checkPostgres(t *testing.T, user, password, dbname, option string) {
	t.Helper()
	o := dbObject("dir/orders.conf", "pg-service")
	o.Connection.DBName = dbname
	o.Connection.Params = map[string]string{"options": option}
	want := map[string]string{"host": "db.example.com", "port": "5433", "dbname": dbname, "user": user, "password": password, "options": option}
	s := Secret{Data: map[string]any{"username": user, "password": password}}
	if r, err := Render(o, s); err == nil {
		got, err := readService(r.Files[0].Data, "orders")
		require.NoError(t, err)
		for _, key := range []string{"dbname", "options"} {
			if want[key] == "" { // left to the application
				require.NotContains(t, got, key)
				got[key] = ""
			}
		}
		require.Equal(t, want, got)
	} else {
		require.True(t, hasControl(user+password+dbname+option) || user == "" || password == "" || len(user+password+dbname+option) > 900 ||
			strings.TrimSpace(user) != user || strings.TrimSpace(password) != password || strings.TrimSpace(dbname) != dbname || strings.TrimSpace(option) != option, "refused without need")
	}
	o.Format = "uri"
	if r, err := Render(o, s); err == nil {
		got, err := readURI(string(r.Files[0].Data))
		require.NoError(t, err)
		require.Equal(t, want, got)
		u, err := url.Parse(string(r.Files[0].Data)) // as Go's drivers read it
		require.NoError(t, err)
		secret, _ := u.User.Password()
		require.Equal(t, []string{user, password, "/" + dbname, option}, []string{u.User.Username(), secret, u.Path, u.Query().Get("options")})
	} else {
		require.True(t, hasControl(dbname+option) || strings.Contains(user+password, "\x00") || user == "" || password == "", "refused without need")
	}
}

func TestPostgresReadBack(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 3000 {
		checkPostgres(t, hostile(r), hostile(r), strings.Trim(hostile(r), "\n\r\t\x00\x01\x7f "), "-c x")
	}
}

func FuzzPostgres(f *testing.F) {
	f.Add("u", "p", "db", "")
	f.Add("#u]", "[p]=;%20+ä", "d b/", "-c a=b")
	f.Fuzz(checkPostgres)
}

func TestURIHosts(t *testing.T) {
	for host, want := range map[string]string{
		"::1": "[::1]:5433", "[fe80::1]": "[fe80::1]:5433", "fe80::1%eth0": "[fe80::1%25eth0]:5433", "10.0.0.1": "10.0.0.1:5433",
		"a,b,::1": "a:5433,b:5433,[::1]:5433", "/run/pg": "%2Frun%2Fpg:5433", "[::1],[::2]": "[::1]:5433,[::2]:5433", "fd00::1:2": "[fd00::1:2]:5433",
	} {
		o := dbObject("x", "uri")
		o.Connection.Host = host
		r, err := Render(o, secretOf(t, creds))
		require.NoError(t, err)
		_, got, _ := strings.Cut(string(r.Files[0].Data), "@")
		got, _, _ = strings.Cut(got, "/")
		require.Equal(t, want, got)
	}
}

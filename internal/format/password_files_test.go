package format

import (
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/provider"
)

// readPgpass is libpq 15's search of a password file by its documented rules and
// those of its source, written for this test: ends of lines are cut off, lines
// with "#" in front skipped; four fields up to ":" must be what is wanted or a
// bare "*"; any byte behind "\" counts as itself; the first match wins.
func readPgpass(file string, want ...string) (string, bool) {
	field := func(line string) (text, rest string, wild bool) {
		var b strings.Builder
		i := 0
		for ; i < len(line) && line[i] != ':'; i++ {
			if line[i] == '\\' && i+1 < len(line) {
				i++
			}
			b.WriteByte(line[i])
		}
		return b.String(), line[min(i+1, len(line)):], line[:i] == "*"
	}
next:
	for line := range strings.Lines(file) {
		line = strings.TrimRight(line, "\r\n")
		if strings.HasPrefix(line, "#") {
			continue
		}
		for _, w := range want {
			text, rest, wild := field(line)
			if text != w && !wild {
				continue next
			}
			line = rest
		}
		password, _, _ := field(line)
		return password, true
	}
	return "", false
}

func checkPgpassBack(t *testing.T, user, password, dbname string) {
	t.Helper()
	o := provider.Object{Name: "x", Format: "pgpass", Mode: 0o600, Connection: provider.Connection{Host: "#a,[::1],/run/pg", DBName: dbname}}
	r, err := Render(o, Secret{Data: map[string]any{"username": user, "password": password}})
	if err != nil {
		require.True(t, user == "" || password == "" || hasControl(dbname) || strings.ContainsAny(user+password, "\n\r\x00"), "refused without need")
		return
	}
	file := string(r.Files[0].Data)
	for _, host := range []string{"#a", "::1", "/run/pg", "localhost"} {
		got, found := readPgpass(file, host, "5432", dbname, user)
		require.True(t, found, host)
		require.Equal(t, password, got)
	}
	for _, other := range [][]string{{"b", "5432", dbname, user}, {"#a", "5432", dbname, user + "x"}, {"#a", "5432", dbname, "x" + user}, {"#a", "5432", dbname + "x", user}} {
		_, found := readPgpass(file, other...)
		require.Equal(t, other[2] != dbname && dbname == "", found, "for that login alone: %q", other)
	}
}

// readOptions is the reader of option files in the clients of MySQL and MariaDB
// by its documented rules and those of its source, written for this test.
func readOptions(file string) (map[string]string, error) {
	const space = " \t\n\v\f\r\xa0" // isspace of the clients' latin1
	options, group := map[string]string{}, ""
	for line := range strings.Lines(file) {
		if len(line) > 4094 {
			return nil, errors.New("line too long")
		}
		line = trimBytes(line, space)
		switch {
		case line == "" || line[0] == '#' || line[0] == ';':
			continue
		case line[0] == '!':
			return nil, errors.New("a directive")
		case line[0] == '[':
			group = line
			continue
		}
		name, value, found := strings.Cut(withoutComment(line), "=")
		if !found || group != "[client]" {
			return nil, errors.New("no option of a client")
		}
		value = trimBytes(value, space)
		if n := len(value); n > 1 && (value[0] == '"' || value[0] == '\'') && value[0] == value[n-1] {
			value = value[1 : n-1]
		}
		var b strings.Builder
		for i := 0; i < len(value); i++ {
			if value[i] == '\\' && i+1 < len(value) {
				i++
				if at := strings.IndexByte(`ntrbs"'\`, value[i]); at >= 0 {
					b.WriteByte("\n\t\r\b \"'\\"[at])
					continue
				}
				b.WriteByte('\\')
			}
			b.WriteByte(value[i])
		}
		options[trimBytes(name, space)] = b.String()
	}
	return options, nil
}

// trimBytes trims bytes where strings.Trim trims runes.
func trimBytes(s, cut string) string {
	for s != "" && strings.IndexByte(cut, s[0]) >= 0 {
		s = s[1:]
	}
	for s != "" && strings.IndexByte(cut, s[len(s)-1]) >= 0 {
		s = s[:len(s)-1]
	}
	return s
}

// withoutComment cuts a line at a "#" outside of quotes.
func withoutComment(line string) string {
	var quote byte
	escaped := false
	for i := range len(line) {
		c := line[i]
		switch {
		case (c == '"' || c == '\'') && !escaped && quote == 0:
			quote = c
		case c == quote && !escaped:
			quote = 0
		case c == '#' && quote == 0:
			return line[:i]
		}
		escaped = quote != 0 && c == '\\' && !escaped
	}
	return line
}

func checkMyCnfBack(t *testing.T, user, password, dbname string) {
	t.Helper()
	o := myObject()
	o.Connection.DBName = dbname
	r, err := Render(o, Secret{Data: map[string]any{"username": user, "password": password}})
	if err != nil {
		require.True(t, user == "" || password == "" || hasControl(dbname) || strings.Contains(user+password, "\x00") || len(user+password+dbname) > 2000, "refused without need")
		return
	}
	got, err := readOptions(string(r.Files[0].Data))
	require.NoError(t, err)
	want := map[string]string{"host": "db.example.com", "port": "3306", "user": user, "password": password, "ssl-ca": "/etc/tls/#1.pem"}
	if dbname != "" {
		want["database"] = dbname
	}
	require.Equal(t, want, got)
}

func TestPasswordFilesReadBack(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	for range 3000 {
		user, password, dbname := hostile(r), hostile(r), strings.Trim(hostile(r), "\n\r\t\x00\x01\x7f")
		checkPgpassBack(t, user, password, dbname)
		checkMyCnfBack(t, user, password, dbname)
	}
	longest := strings.Repeat("p", maxOptionLine-len(`password=""`))
	checkMyCnfBack(t, "u", longest, "")
	_, err := Render(myObject(), Secret{Data: map[string]any{"username": "u", "password": longest + "p"}})
	require.ErrorContains(t, err, "longer than a line")
}

func FuzzPgpass(f *testing.F) {
	f.Add("u", "p", "db")
	f.Add("*", `:\`, `\:`)
	f.Add("#", ` p `, "*")
	f.Fuzz(checkPgpassBack)
}

func FuzzMyCnf(f *testing.F) {
	f.Add("u", "p", "db")
	f.Add(`'"#`, `\"'#`, "\xa0")
	f.Add("\b\t\r\n", `\`, "'")
	f.Fuzz(checkMyCnfBack)
}

package format

import (
	"io/fs"
	"strings"

	"github.com/tenure-csi/tenure/provider"
)

// pgpass writes a libpq password file: for each host of the connection a line
// host:port:database:user:password, with "*" where the connection says nothing.
// It tells libpq the password of a user that the application names itself, as
// that of a static role; format pg-service tells both.
//
// libpq 15 (fe-connect.c, passwordFromFile) takes any byte behind a backslash,
// and of the rest of a line only its end. It looks a socket in the directory
// that it was built with up as "localhost".
func pgpass(o provider.Object, s Secret) ([]byte, error) {
	user, password, err := login(s.Data)
	if err != nil {
		return nil, err
	}
	if strings.ContainsAny(user+password, "\r\n") {
		return nil, invalid("format", "username or password holds a newline or a carriage return, which a libpq password file can't carry", "use format uri or json")
	}
	servers := hosts(o.Connection)
	if servers == nil {
		servers = []string{""}
	}
	var file strings.Builder
	for _, host := range servers {
		names := []string{host}
		if strings.HasPrefix(host, "/") {
			names = append(names, "localhost")
		}
		for _, name := range names {
			line := strings.Join([]string{pgpassField(name), pgpassField(port(o.Connection)), pgpassField(o.Connection.DBName), pgpassField(user), pgpassEscape(password)}, ":")
			if line[0] == '#' {
				line = `\` + line // no comment
			}
			file.WriteString(line + "\n")
		}
	}
	return []byte(file.String()), nil
}

// pgpassField escapes a field that libpq compares.
func pgpassField(s string) string {
	switch s {
	case "":
		return "*"
	case "*":
		return `\*`
	}
	return pgpassEscape(s)
}

func pgpassEscape(s string) string { return strings.NewReplacer(`\`, `\\`, ":", `\:`).Replace(s) }

func checkPgpass(o provider.Object) error {
	if len(o.Connection.Params) > 0 {
		return invalid("connection.params", "a libpq password file has no place for params", "remove them, or use format pg-service or uri")
	}
	if err := checkMode(o, 0o077, "group or others use the file, and libpq ignores such a password file",
		"set filePermission: 0600, and owner to the user id that the application runs as"); err != nil {
		return err
	}
	return checkConnection(o.Connection)
}

// checkMode refuses permissions under which the reader ignores the file.
func checkMode(o provider.Object, refused fs.FileMode, cause, remedy string) error {
	if o.Mode&refused == 0 {
		return nil
	}
	return invalid("filePermission", "it lets "+cause, remedy)
}

package format

import (
	"regexp"
	"strings"

	"github.com/tenure-csi/tenure/provider"
)

// maxOptionLine is the longest line of an option file without its newline: the
// clients of MySQL and MariaDB read lines into 4096 bytes, and take the rest of a
// longer one for a line of its own (mysys/my_default.c,
// search_default_file_with_ext), so that with its newline it has at most 4094.
const maxOptionLine = 4093

// myCnf writes an option file of MySQL and MariaDB with the group [client], for
// --defaults-file and its likes. The lines are the connection's host, port and
// dbname, the data's username and password, then the connection's params,
// sorted. What the connection leaves out is left to the application. Every value
// is quoted: within quotes the reader takes "#" and blanks at the ends as they
// are, and undoes the escapes of optionEscape.
//
// database is an option of the client program and of the libraries; other
// programs, such as mysqldump, stop at it and need a connection without dbname.
// The host localhost means the socket to all of them, whatever the port.
func myCnf(o provider.Object, s Secret) ([]byte, error) {
	user, password, err := login(s.Data)
	if err != nil {
		return nil, err
	}
	file := []byte("[client]\n")
	for _, l := range settings(o.Connection, "database", user, password) {
		line, err := optionLine(l[0], l[1])
		if err != nil {
			return nil, err
		}
		file = append(file, line+"\n"...)
	}
	return file, nil
}

func optionLine(name, value string) (string, error) {
	line := name + `="` + optionEscape.Replace(value) + `"`
	if len(line) > maxOptionLine {
		return "", invalid("format", "the connection's "+name+" is longer than a line of a MySQL option file may be", "use format json or keys")
	}
	return line, nil
}

var optionEscape = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`, "\r", `\r`, "\t", `\t`, "\b", `\b`)

var optionName = regexp.MustCompile(`^[a-z][a-z0-9_-]*$`)

func checkMyCnf(o provider.Object) error {
	if err := checkServer(o.Connection); err != nil {
		return err
	}
	if err := checkParams(o.Connection, optionName.MatchString, "use an option of MySQL's clients, such as ssl-ca", "host", "port", "database", "user", "password"); err != nil {
		return err
	}
	switch h := o.Connection.Host; {
	case strings.HasPrefix(h, "/"):
		return invalid("connection.host", "a MySQL client takes a socket as an option of its own", "set connection.params.socket and no host")
	case strings.Contains(h, ","):
		return invalid("connection.host", "a MySQL client takes one host", "name one host")
	}
	for _, l := range settings(o.Connection, "database", "", "") {
		if _, err := optionLine(l[0], l[1]); err != nil {
			return err
		}
	}
	return checkMode(o, 0o002, "others write the file, and MySQL's clients ignore such an option file", "set filePermission: 0600, or 0640")
}

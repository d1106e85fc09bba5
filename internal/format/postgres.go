package format

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/tenure-csi/tenure/provider"
)

// maxServiceLine is the longest line of a service file without its newline:
// libpq 15 reads lines into 1024 bytes and refuses one that fills them
// (fe-connect.c, parseServiceFile; psql 15 takes 1021 bytes and refuses 1022).
const maxServiceLine = 1021

// pgService writes a libpq connection service file with one section, named as
// the file without its directories and without ".conf": an object "db/orders" or
// "orders.conf" is used with PGSERVICE=orders and PGSERVICEFILE naming the file.
// The lines are the connection's host, port, dbname, the data's username and
// password, then the connection's params, sorted. What the connection leaves out
// is left to the application. The reader knows no quoting: it trims lines and
// takes the rest, so that a value with a newline, or with white space at an end,
// is refused.
func pgService(o provider.Object, s Secret) ([]byte, error) {
	user, password, err := login(s.Data)
	if err != nil {
		return nil, err
	}
	section := strings.TrimSuffix(path.Base(o.Name), ".conf")
	if section == "" {
		section = path.Base(o.Name)
	}
	b := []byte("[" + section + "]\n")
	for _, l := range settings(o.Connection, "dbname", user, password) {
		if err := checkServiceLine(l[0], l[1]); err != nil {
			return nil, err
		}
		b = append(b, l[0]+"="+l[1]+"\n"...)
	}
	return b, nil
}

// settings lists keyword and value of a connection's lines, with the reader's
// word for the database's name; what is empty is left out.
func settings(c provider.Connection, dbname, user, password string) [][2]string {
	lines := [][2]string{{"host", strings.Join(hosts(c), ",")}, {"port", port(c)}, {dbname, c.DBName}, {"user", user}, {"password", password}}
	for _, name := range slices.Sorted(maps.Keys(c.Params)) {
		lines = append(lines, [2]string{name, c.Params[name]})
	}
	return slices.DeleteFunc(lines, func(l [2]string) bool { return l[1] == "" })
}

func checkServiceLine(name, value string) error {
	const space = " \t\n\v\f\r" // C's isspace
	cause, remedy := "", "use format uri or json"
	switch {
	case strings.ContainsAny(value, "\n\x00"):
		cause = "holds a newline or a NUL byte"
	case strings.Trim(value, space) != value:
		cause = "begins or ends with white space"
	case len(name)+1+len(value) > maxServiceLine:
		cause, remedy = "is longer than a line of 1 KiB", "use format pgpass, uri or env"
	default:
		return nil
	}
	return invalid("format", "the connection's "+name+" "+cause+", which a libpq service file can't carry", remedy)
}

// uri writes postgresql://user:password@host:port/dbname?params, without a
// newline at the end, because applications take the file's bytes as they are.
// Everything but letters, digits and -_.~ is percent-encoded. Several hosts,
// separated by commas, each get the port.
func uri(o provider.Object, s Secret) ([]byte, error) {
	user, password, err := login(s.Data)
	if err != nil {
		return nil, err
	}
	c := o.Connection
	var params, servers []string
	for _, h := range hosts(c) {
		h = uriHost(h)
		if c.Port != 0 {
			h += ":" + port(c)
		}
		servers = append(servers, h)
	}
	for _, name := range slices.Sorted(maps.Keys(c.Params)) {
		params = append(params, name+"="+percent(c.Params[name]))
	}
	text := "postgresql://" + percent(user) + ":" + percent(password) + "@" + strings.Join(servers, ",") + "/" + percent(c.DBName)
	if len(params) > 0 {
		text += "?" + strings.Join(params, "&")
	}
	return []byte(text), nil
}

// percent encodes for any part of a URI. libpq takes "+" for itself, not for a space.
func percent(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "+", "%20") }

func uriHost(h string) string {
	if ip, err := netip.ParseAddr(h); err == nil && ip.Is6() {
		h = ip.WithZone("").String()
		if ip.Zone() != "" {
			h += percent("%" + ip.Zone())
		}
		return "[" + h + "]"
	}
	return percent(h)
}

// hosts splits the connection's hosts and takes brackets off.
func hosts(c provider.Connection) []string {
	if c.Host == "" {
		return nil
	}
	list := strings.Split(c.Host, ",")
	for i, h := range list {
		if strings.HasPrefix(h, "[") {
			list[i] = strings.TrimSuffix(h[1:], "]")
		}
	}
	return list
}

func port(c provider.Connection) string {
	if c.Port == 0 {
		return ""
	}
	return strconv.Itoa(c.Port)
}

// login takes username and password from data as Vault's database engine answers.
func login(data map[string]any) (user, password string, err error) {
	if user, err = loginPart(data, "username"); err != nil {
		return "", "", err
	}
	password, err = loginPart(data, "password")
	return user, password, err
}

func loginPart(data map[string]any, key string) (string, error) {
	text := ""
	switch v := data[key].(type) {
	case string:
		text = v
	case json.Number:
		text = v.String()
	}
	switch {
	case text == "":
		return "", invalid("format", "the data has no "+quoteName(key)+" with a value; it has "+keyNames(data),
			"read from a database engine's creds or static-creds path, or use format template")
	case strings.ContainsRune(text, 0):
		return "", invalid("format", "the entry "+quoteName(key)+" holds a NUL byte, which no database login can carry", "change it at the backend")
	}
	return text, nil
}

func checkService(o provider.Object) error {
	if err := checkConnection(o.Connection); err != nil {
		return err
	}
	for _, l := range settings(o.Connection, "dbname", "", "") {
		if err := checkServiceLine(l[0], l[1]); err != nil {
			return err
		}
	}
	return nil
}

func checkURI(o provider.Object) error {
	if o.Connection.Host == "" {
		return invalid("connection.host", "format uri needs a host", "set connection.host")
	}
	return checkConnection(o.Connection)
}

var paramName = regexp.MustCompile(`^[a-z][a-z0-9_]*$`)

// isKeyword says whether name looks like libpq's keywords. "ldap" at the start
// of a service file's line would ask a directory server.
func isKeyword(name string) bool {
	return paramName.MatchString(name) && !strings.HasPrefix(name, "ldap")
}

func checkConnection(c provider.Connection) error {
	if err := checkServer(c); err != nil {
		return err
	}
	return checkParams(c, isKeyword, "use a keyword of libpq, such as sslmode", "host", "port", "dbname", "user", "password", "service", "servicefile")
}

func checkServer(c provider.Connection) error {
	for _, h := range hosts(c) {
		_, err := netip.ParseAddr(h)
		switch {
		case h == "":
			return invalid("connection.host", "the list of hosts has an empty one", "remove the comma")
		case hasControl(h) || strings.ContainsAny(h, " []"):
			return invalid("connection.host", "the host has a character that no host has", "correct connection.host")
		case err != nil && h[0] != '/' && strings.Contains(h, ":"):
			return invalid("connection.host", "the host has a \":\" and is no IPv6 address", "put the port into connection.port")
		}
	}
	if c.Port < 0 || c.Port > 65535 {
		return invalid("connection.port", fmt.Sprintf("%d is no port", c.Port), "use 1 to 65535")
	}
	if hasControl(c.DBName) {
		return invalid("connection.dbname", "the name has a control character", "correct connection.dbname")
	}
	return nil
}

// checkParams takes names that the reader may know and that have no other place.
func checkParams(c provider.Connection, known func(string) bool, remedy string, reserved ...string) error {
	for _, name := range slices.Sorted(maps.Keys(c.Params)) {
		switch {
		case !known(name):
			return invalid("connection.params", quoteName(name)+" is no parameter of the format's reader", remedy)
		case slices.Contains(reserved, name):
			return invalid("connection.params", quoteName(name)+" can't be a param", "set host, port and dbname in connection; user and password come from the data")
		case hasControl(c.Params[name]):
			return invalid("connection.params", "the value of "+quoteName(name)+" has a control character", "correct it")
		}
	}
	return nil
}

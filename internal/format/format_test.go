package format

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/provider"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var end = time.Date(2031, 5, 6, 7, 8, 9, 999, time.FixedZone("X", 7200))

// secretOf reads data as a source does, numbers kept.
func secretOf(tb testing.TB, data string) Secret {
	tb.Helper()
	d := json.NewDecoder(strings.NewReader(data))
	d.UseNumber()
	var s Secret
	require.NoError(tb, d.Decode(&s.Data))
	return s
}

// answerOf reads a whole Vault response as a source does.
func answerOf(tb testing.TB, body string) Secret {
	tb.Helper()
	s := Secret{Envelope: secretOf(tb, body).Data}
	s.Data, _ = s.Envelope["data"].(map[string]any)
	if inner, ok := s.Data["data"].(map[string]any); ok && s.Data["metadata"] != nil {
		s.Data = inner
	}
	return s
}

const (
	credsBody = `{"request_id":"r-1","lease_id":"database/creds/orders/l-1","renewable":true,"lease_duration":3600,
		"data":{"username":"v-orders-1","password":"p<&>-1"},"wrap_info":null,"warnings":null,"auth":null,"mount_type":"database"}`
	kv2Body = `{"request_id":"r-2","lease_id":"","renewable":false,"lease_duration":0,"data":{"data":
		{"bar1":"hello1","n":12345678901234567890.10,"on":true,"list":["<",null]},"metadata":{"version":3,"custom_metadata":null}},
		"wrap_info":null,"warnings":["look"],"auth":null,"mount_type":"kv"}`
	creds = `{"username":"v-orders-1","password":"p 'ä\"$\\:%#;@/?"}`
)

func dbObject(name, format string) provider.Object {
	o := provider.Object{Name: name, Format: format, Connection: provider.Connection{Host: "db.example.com", Port: 5433, DBName: "orders"}}
	if format != "pgpass" { // has no place for them
		o.Connection.Params = map[string]string{"sslmode": "verify-full", "options": "-c search_path=a,b"}
	}
	return o
}

func myObject() provider.Object {
	return provider.Object{Name: "my.cnf", Format: "my-cnf", Mode: 0o644, Connection: provider.Connection{
		Host: "db.example.com", Port: 3306, DBName: "orders", Params: map[string]string{"ssl-ca": "/etc/tls/#1.pem"},
	}}
}

func TestGolden(t *testing.T) {
	block := func(kind, base64 string) string {
		return "-----BEGIN " + kind + "-----\n" + base64 + "\n-----END " + kind + "-----"
	}
	pki := Secret{Data: map[string]any{
		"private_key": block("PRIVATE KEY", "a2V5"), "certificate": block("CERTIFICATE", "bGVhZg=="),
		"ca_chain": []any{block("CERTIFICATE", "aW50ZXI="), block("CERTIFICATE", "cm9vdA==")},
	}}
	for name, c := range map[string]struct {
		object provider.Object
		secret Secret
	}{
		"hashicorp-response":     {provider.Object{Name: "db"}, answerOf(t, credsBody)},
		"hashicorp-kv2":          {provider.Object{Name: "kv"}, answerOf(t, kv2Body)},
		"hashicorp-key":          {provider.Object{Name: "kv", Key: "bar1"}, answerOf(t, kv2Body)},
		"hashicorp-list":         {provider.Object{Name: "kv", Key: "list"}, answerOf(t, kv2Body)},
		"raw":                    {provider.Object{Name: "dir/n", Key: "n", Format: "raw"}, answerOf(t, kv2Body)},
		"raw-single":             {provider.Object{Name: "x", Format: "raw", Encoding: "base64"}, secretOf(t, `{"any":"AGEKYg=="}`)},
		"json":                   {provider.Object{Name: "x", Format: "json"}, answerOf(t, kv2Body)},
		"json-expiration":        {provider.Object{Name: "x", Format: "json"}, Secret{Data: secretOf(t, creds).Data, Expires: end}},
		"keys":                   {provider.Object{Name: "a/b", Format: "keys"}, secretOf(t, `{"user":"u\n","port":5432,"tls.crt":{"a":"<"},"none":null}`)},
		"env":                    {provider.Object{Name: "x", Format: "env"}, secretOf(t, `{"b":"it's\n$HOME","A_1":5432,"on":false,"token":null}`)},
		"pem":                    {provider.Object{Name: "x", Format: "pem"}, pki},
		"pg-service":             {dbObject("tenant-a/orders.conf", "pg-service"), secretOf(t, creds)},
		"uri":                    {dbObject("x", "uri"), secretOf(t, creds)},
		"pgpass":                 {provider.Object{Name: "x", Format: "pgpass", Mode: 0o600, Connection: provider.Connection{Host: "[::1],#a,/run/pg", Port: 5433}}, secretOf(t, creds)},
		"pgpass-anywhere":        {provider.Object{Name: "x", Format: "pgpass"}, secretOf(t, creds)},
		"my-cnf":                 {myObject(), secretOf(t, creds)},
		"aws-credentials":        {provider.Object{Name: "x", Format: "aws-credentials"}, secretOf(t, awsData)},
		"aws-credentials-user":   {provider.Object{Name: "x", Format: "aws-credentials"}, secretOf(t, awsUser)},
		"aws-credential-process": {awsObject(), Secret{Data: secretOf(t, awsData).Data, Expires: end}},
		"aws-process-user":       {awsObject(), secretOf(t, awsUser)},
		"template": {
			provider.Object{Name: "x", Format: "template", Template: "[db]\nuser = {{quote .Data.username}}\npassword = {{.Data.password | quote}}\nend = {{.Lease.Expires}}\n"},
			Secret{Data: secretOf(t, creds).Data, Expires: end},
		},
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, Check(c.object))
			r, err := Render(c.object, c.secret)
			require.NoError(t, err)
			var got bytes.Buffer
			for _, f := range r.Files {
				fmt.Fprintf(&got, "-- %s --\n%s\n", f.Path, f.Data)
			}
			file := filepath.Join("testdata", name+".golden")
			if *update {
				require.NoError(t, os.WriteFile(file, got.Bytes(), 0o644))
			}
			want, err := os.ReadFile(file)
			require.NoError(t, err)
			require.Equal(t, string(want), got.String())
		})
	}
}

// The oracle is the client that the HashiCorp provider uses: parsed by it and
// marshalled again, a response must have the very bytes that Render writes.
func TestWholeResponseIsAsVaultAPIMarshalsIt(t *testing.T) {
	for name, body := range map[string]string{
		"lease":    credsBody,
		"kv2":      kv2Body,
		"no mount": `{"request_id":"","lease_id":"","renewable":false,"lease_duration":2764800,"data":{"k":"\u2028<\ufffd"},"wrap_info":null,"warnings":[],"auth":null}`,
		"bare":     `{"data":{"k":1e400}}`,
	} {
		t.Run(name, func(t *testing.T) {
			secret, err := api.ParseSecret(strings.NewReader(body))
			require.NoError(t, err)
			want, err := json.Marshal(secret)
			require.NoError(t, err)
			r, err := Render(provider.Object{Name: "x"}, answerOf(t, body))
			require.NoError(t, err)
			require.Equal(t, string(want), string(r.Files[0].Data))
		})
	}
}

// The HashiCorp provider looks into "data" wherever that is a map, metadata or not.
func TestHashiCorpKey(t *testing.T) {
	kv1 := `{"data":{"data":{"in":"inner"},"out":"outer"}}`
	for name, c := range map[string]struct{ body, key, encoding, want, fault string }{
		"kv2 string":        {kv2Body, "bar1", "", "hello1", ""},
		"utf-8":             {kv2Body, "bar1", "utf-8", "hello1", ""},
		"number":            {kv2Body, "n", "", "12345678901234567890.10", ""},
		"bool":              {kv2Body, "on", "", "true", ""},
		"HTML escaped":      {kv2Body, "list", "", `["\u003c",null]`, ""},
		"null":              {`{"data":{"k":null}}`, "k", "", "null", ""},
		"kv1 with data map": {kv1, "in", "", "inner", ""},
		"hides the rest":    {kv1, "out", "", "", `the data has no entry "out"; it has "in"`},
		"data no map":       {`{"data":{"data":"s"}}`, "data", "", "s", ""},
		"base64":            {`{"data":{"k":"aGk="}}`, "k", "BASE64", "hi", ""},
		"hex":               {`{"data":{"k":"6869"}}`, "k", "hex", "hi", ""},
		"not base64":        {`{"data":{"k":"hi!"}}`, "k", "base64", "", "the value is not base64"},
		"not hex":           {`{"data":{"k":"hi!"}}`, "k", "hex", "", "the value is not hex"},
		"bad encoding":      {`{"data":{"k":"hi!"}}`, "k", "rot13", "", `the encoding "rot13" is not known`},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := Render(provider.Object{Name: "x", Key: c.key, Encoding: c.encoding}, answerOf(t, c.body))
			if c.fault != "" {
				require.ErrorContains(t, err, c.fault)
				return
			}
			require.NoError(t, err)
			require.Equal(t, []File{{"x", []byte(c.want)}}, r.Files)
		})
	}
}

func TestErrorsNameObjectFieldAndWayOut(t *testing.T) {
	const data = `{"k":"v","username":"u","password":"p","none":null}`
	db := func(change func(*provider.Connection)) provider.Object {
		o := dbObject("x", "uri")
		change(&o.Connection)
		return o
	}
	my := func(change func(*provider.Object)) provider.Object {
		o := myObject()
		change(&o)
		return o
	}
	for name, c := range map[string]struct {
		object       provider.Object
		data         string
		field, cause string
		early        bool // Check says it too
	}{
		"no data":            {provider.Object{Name: "x"}, `{}`, "secretPath", "the backend answered without data", false},
		"null data":          {provider.Object{Name: "x"}, `null`, "secretPath", "the backend answered without data", false},
		"unknown format":     {provider.Object{Name: "x", Format: "jsn"}, data, "format", `the format "jsn" is not known`, true},
		"path":               {provider.Object{Name: "a/../b"}, data, "objectName", "the name is no path that the driver accepts", true},
		"missing key":        {provider.Object{Name: "x", Key: "q"}, data, "secretKey", `the data has no entry "q"; it has "k", "none", "password", "username"`, false},
		"raw, missing key":   {provider.Object{Name: "x", Format: "raw", Key: "q"}, data, "secretKey", `the data has no entry "q"; it has "k", "none", "password", "username"`, false},
		"raw without key":    {provider.Object{Name: "x", Format: "raw"}, data, "secretKey", `format raw writes one value and the data has "k", "none", "password", "username"`, false},
		"raw null":           {provider.Object{Name: "x", Format: "raw", Key: "none"}, data, "secretKey", `the entry "none" is null`, false},
		"json with key":      {provider.Object{Name: "x", Format: "json", Key: "k"}, data, "secretKey", "format json writes the whole data", true},
		"env with encoding":  {provider.Object{Name: "x", Format: "env", Encoding: "hex"}, data, "encoding", "format env decodes no values", true},
		"keys, slash":        {provider.Object{Name: "x", Format: "keys"}, `{"a/b":"v"}`, "format", `the entry "a/b" can't be the name of a file`, false},
		"keys, dots":         {provider.Object{Name: "x", Format: "keys"}, `{"..":"v"}`, "format", `the entry ".." can't be the name of a file`, false},
		"keys, dot":          {provider.Object{Name: "x", Format: "keys"}, `{".":"v"}`, "format", `the entry "." can't be the name of a file`, false},
		"keys, empty":        {provider.Object{Name: "x", Format: "keys"}, `{"":"v"}`, "format", `the entry "" can't be the name of a file`, false},
		"keys, newline":      {provider.Object{Name: "x", Format: "keys"}, `{"a\n":"v"}`, "format", `the entry "a\n" can't be the name of a file`, false},
		"keys, all null":     {provider.Object{Name: "x", Format: "keys"}, `{"a":null}`, "secretPath", "every entry of the data is null", false},
		"env, dash":          {provider.Object{Name: "x", Format: "env"}, `{"a-b":"v"}`, "format", `the entry "a-b" can't be a variable of a shell`, false},
		"env, newline":       {provider.Object{Name: "x", Format: "env"}, `{"a\n":"v"}`, "format", `the entry "a\n" can't be a variable of a shell`, false},
		"env, PATH":          {provider.Object{Name: "x", Format: "env"}, `{"PATH":"v"}`, "format", `the entry "PATH" can't be a variable of a shell`, false},
		"env, NUL":           {provider.Object{Name: "x", Format: "env"}, `{"a":"v\u0000"}`, "format", `the entry "a" holds a NUL byte, which no variable can carry`, false},
		"env, all null":      {provider.Object{Name: "x", Format: "env"}, `{"a":null}`, "secretPath", "every entry of the data is null", false},
		"pem, no key":        {provider.Object{Name: "x", Format: "pem"}, data, "format", `the entry "private_key" is missing; the data has "k", "none", "password", "username"`, false},
		"pem, no string":     {provider.Object{Name: "x", Format: "pem"}, `{"private_key":5}`, "format", `the entry "private_key" is not a string`, false},
		"pem, DER":           {provider.Object{Name: "x", Format: "pem"}, `{"private_key":"MIIB"}`, "format", `the entry "private_key" is not PEM`, false},
		"pem, damaged":       {provider.Object{Name: "x", Format: "pem"}, `{"private_key":"-----BEGIN PRIVATE KEY-----\n!"}`, "format", `the entry "private_key" holds a damaged PEM block`, false},
		"pg, no user":        {dbObject("x", "pg-service"), `{"password":"p"}`, "format", `the data has no "username" with a value; it has "password"`, false},
		"pg, empty password": {dbObject("x", "pg-service"), `{"username":"u","password":""}`, "format", `the data has no "password" with a value; it has "password", "username"`, false},
		"pg, newline":        {dbObject("x", "pg-service"), `{"username":"u","password":"a\nb"}`, "format", "the connection's password holds a newline or a NUL byte, which a libpq service file can't carry", false},
		"pg, space":          {dbObject("x", "pg-service"), `{"username":"u","password":"a "}`, "format", "the connection's password begins or ends with white space, which a libpq service file can't carry", false},
		"pg, param newline":  {provider.Object{Name: "x", Format: "pg-service", Connection: provider.Connection{Params: map[string]string{"options": "a\nhost=b"}}}, creds, "connection.params", `the value of "options" has a control character`, true},
		"pg, param space":    {provider.Object{Name: "x", Format: "pg-service", Connection: provider.Connection{Params: map[string]string{"options": "a "}}}, creds, "format", "the connection's options begins or ends with white space, which a libpq service file can't carry", true},
		"uri, NUL":           {dbObject("x", "uri"), `{"username":"u\u0000","password":"p"}`, "format", `the entry "username" holds a NUL byte, which no database login can carry`, false},
		"uri, no host":       {provider.Object{Name: "x", Format: "uri"}, creds, "connection.host", "format uri needs a host", true},
		"host with port":     {db(func(c *provider.Connection) { c.Host = "a:5432" }), creds, "connection.host", `the host has a ":" and is no IPv6 address`, true},
		"empty host":         {db(func(c *provider.Connection) { c.Host = "a,,b" }), creds, "connection.host", "the list of hosts has an empty one", true},
		"host with newline":  {db(func(c *provider.Connection) { c.Host = "a\nb" }), creds, "connection.host", "the host has a character that no host has", true},
		"port":               {db(func(c *provider.Connection) { c.Port = 65536 }), creds, "connection.port", "65536 is no port", true},
		"dbname":             {db(func(c *provider.Connection) { c.DBName = "a\x00" }), creds, "connection.dbname", "the name has a control character", true},
		"param name":         {db(func(c *provider.Connection) { c.Params = map[string]string{"a&b": ""} }), creds, "connection.params", `"a&b" is no parameter of the format's reader`, true},
		"param ldap":         {db(func(c *provider.Connection) { c.Params = map[string]string{"ldapx": ""} }), creds, "connection.params", `"ldapx" is no parameter of the format's reader`, true},
		"param password":     {db(func(c *provider.Connection) { c.Params = map[string]string{"password": "p"} }), creds, "connection.params", `"password" can't be a param`, true},
		"pgpass, CR":         {provider.Object{Name: "x", Format: "pgpass"}, `{"username":"u","password":"a\rb"}`, "format", "username or password holds a newline or a carriage return, which a libpq password file can't carry", false},
		"pgpass, user":       {provider.Object{Name: "x", Format: "pgpass"}, `{"username":"u\n","password":"p"}`, "format", "username or password holds a newline", false},
		"pgpass, mode":       {provider.Object{Name: "x", Format: "pgpass", Mode: 0o640}, creds, "filePermission", "it lets group or others use the file, and libpq ignores such a password file", true},
		"pgpass, params":     {provider.Object{Name: "x", Format: "pgpass", Connection: provider.Connection{Params: map[string]string{"sslmode": "disable"}}}, creds, "connection.params", "a libpq password file has no place for params", true},
		"my-cnf, NUL":        {myObject(), `{"username":"u","password":"a\u0000b"}`, "format", `the entry "password" holds a NUL byte, which no database login can carry`, false},
		"my-cnf, long":       {myObject(), `{"username":"u","password":"` + strings.Repeat(`'\"`, 1400) + `"}`, "format", "the connection's password is longer than a line of a MySQL option file may be", false},
		"my-cnf, mode":       {my(func(o *provider.Object) { o.Mode = 0o666 }), creds, "filePermission", "it lets others write the file", true},
		"my-cnf, hosts":      {my(func(o *provider.Object) { o.Connection.Host = "a,b" }), creds, "connection.host", "a MySQL client takes one host", true},
		"my-cnf, socket":     {my(func(o *provider.Object) { o.Connection.Host = "/run/my" }), creds, "connection.host", "a MySQL client takes a socket as an option of its own", true},
		"my-cnf, param":      {my(func(o *provider.Object) { o.Connection.Params = map[string]string{"a=b": ""} }), creds, "connection.params", `"a=b" is no parameter of the format's reader`, true},
		"my-cnf, database":   {my(func(o *provider.Object) { o.Connection.Params = map[string]string{"database": "x"} }), creds, "connection.params", `"database" can't be a param`, true},
		"my-cnf, long param": {my(func(o *provider.Object) { o.Connection.Params["ssl-ca"] = strings.Repeat("x", 4096) }), creds, "format", "the connection's ssl-ca is longer than a line", true},
		"aws, no key":        {awsObject(), data, "format", `the data has no "access_key" with a value; it has "k", "none", "password", "username"`, false},
		"aws, no secret":     {awsObject(), `{"access_key":"A"}`, "format", `the data has no "secret_key" with a value`, false},
		"aws, newline":       {awsObject(), `{"access_key":"A","secret_key":"a\nb"}`, "format", `the entry "secret_key" has characters that no AWS key has`, false},
		"aws, profile":       {provider.Object{Name: "x", Format: "aws-credentials"}, `{"access_key":"A","secret_key":"b","session_token":"c\n[other]"}`, "format", `the entry "session_token" has characters that no AWS key has`, false},
		"aws, mount":         {provider.Object{Name: "x", Format: "aws-credential-process"}, awsData, "mountPath", "format aws-credential-process names a file", true},
		"aws, shell":         {provider.Object{Name: "x", Format: "aws-credential-process", MountPath: "/run/$(id)"}, awsData, "mountPath", "the path has characters that AWS's SDKs would give to a shell", true},
		"aws, long name":     {provider.Object{Name: strings.Repeat("a/", 2040) + "b", Format: "aws-credential-process", MountPath: "/run"}, awsData, "objectName", "the name leaves no room", true},
		"template, empty":    {provider.Object{Name: "x", Format: "template"}, data, "template", "the template is empty", true},
		"template, syntax":   {provider.Object{Name: "x", Format: "template", Template: "a\n{{.Data."}, data, "template", "line 2, column 8: unexpected", true},
		"template, missing":  {provider.Object{Name: "x", Format: "template", Template: "a\n{{.Data.q}}"}, data, "template", `line 2, column 8: there is no entry of this name; the data has "k", "none", "password", "username"`, false},
	} {
		t.Run(name, func(t *testing.T) {
			c.object.Tenant = "tenant-a"
			r, err := Render(c.object, secretOf(t, c.data))
			require.Zero(t, r)
			var e *provider.Error
			require.ErrorAs(t, err, &e)
			require.Equal(t, provider.Invalid, e.Class)
			require.Equal(t, c.object.Name, e.Object)
			require.Equal(t, "tenant-a", e.Tenant)
			require.Equal(t, c.field, e.Field)
			require.Contains(t, e.Cause, c.cause)
			require.NotEmpty(t, e.Remedy)
			if early := Check(c.object); c.early {
				require.Equal(t, err, early)
			} else {
				require.NoError(t, early)
			}
		})
	}
}

func TestExpirationIsNeverOverwritten(t *testing.T) {
	s := secretOf(t, `{"expiration":1}`)
	_, err := Render(provider.Object{Name: "x", Format: "json"}, s)
	require.NoError(t, err)
	s.Expires = end
	_, err = Render(provider.Object{Name: "x", Format: "json"}, s)
	require.ErrorContains(t, err, "{{toJson .Data}}")
}

func TestPaths(t *testing.T) {
	long := strings.Repeat("n", maxName)
	for path, valid := range map[string]bool{
		"a": true, "a/b": true, ".a": true, "a..b": true, "a/..b": true, long: true, strings.Repeat(long+"/", 15) + long: true,
		"": false, ".": false, "/a": false, "..": false, "../a": false, "..data": false, "a/../b": false, "a//b": false, "a/": false, "./a": false,
		"a\n": false, "a\x00": false, "a\x7f": false, long + "n": false, "a/" + long + "n": false, strings.Repeat("a/", maxPath/2) + "a": false,
	} {
		require.Equal(t, valid, validPath(path), "%.40q", path)
	}
}

func TestErrorListsBoundedNames(t *testing.T) {
	s := Secret{Data: map[string]any{"\x1b[31m" + strings.Repeat("k", 1<<20): "v"}}
	for i := range 1000 {
		s.Data[fmt.Sprint("key", i)] = "v"
	}
	_, err := Render(provider.Object{Name: "x", Key: "q"}, s)
	require.ErrorContains(t, err, " and 989 more")
	require.Less(t, len(err.Error()), 600)
	require.NotContains(t, err.Error(), "\x1b")
}

// The version of an object must not follow the envelope, and must follow the data.
func TestStable(t *testing.T) {
	o := provider.Object{Name: "x"}
	stable := func(o provider.Object, body string) string {
		r, err := Render(o, answerOf(t, body))
		require.NoError(t, err)
		return string(r.Stable)
	}
	later := strings.NewReplacer("r-1", "r-9", "l-1", "l-9", "3600", "1800", `"warnings":null`, `"warnings":["w"]`).Replace(credsBody)
	require.Equal(t, stable(o, credsBody), stable(o, later))
	require.NotEqual(t, stable(o, credsBody), stable(o, strings.Replace(credsBody, "v-orders-1", "v-orders-2", 1)))
	require.NotEqual(t, stable(o, kv2Body), stable(o, strings.Replace(kv2Body, `"version":3`, `"version":4`, 1)))

	// Lengths stand before parts: no two file lists give the same bytes.
	keys := provider.Object{Name: "x", Format: "keys"}
	require.NotEqual(t, stable(keys, `{"data":{"a":"1","b":"2"}}`), stable(keys, `{"data":{"a":"1x/b2"}}`))
	require.Equal(t, "\x00\x00\x00\x00\x00\x00\x00\x03x/a\x00\x00\x00\x00\x00\x00\x00\x011", stable(keys, `{"data":{"a":"1"}}`))
}

// Every format on one shared secret from many goroutines: with -race a change of
// the input shows, and so do bytes that differ.
func TestRenderIsPureAndConcurrent(t *testing.T) {
	s := pkiData(t)
	maps.Copy(s.Data, secretOf(t, awsData).Data)
	maps.Copy(s.Data, secretOf(t, `{"username":"u","password":"p","n":1.50,"m":{"b":[1,null,"x"],"a":{}}}`).Data)
	s.Envelope = map[string]any{"request_id": "r", "data": s.Data}
	before, err := json.Marshal(s)
	require.NoError(t, err)
	for format := range formats {
		o := dbObject("x", format)
		o.MountPath = "/run"
		o.Template = `{{range $k, $v := .Data.m}}{{$k}}={{toJson $v}}{{end}}`
		if format == "raw" {
			o.Key = "m"
		}
		want, err := Render(o, s)
		require.NoError(t, err, format)
		require.NotEmpty(t, want.Files)
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for range 5 {
					got, err := Render(o, s)
					if err != nil || !bytes.Equal(got.Stable, want.Stable) {
						t.Errorf("format %q: another rendering differs", format)
					}
				}
			})
		}
		wg.Wait()
	}
	after, err := json.Marshal(s)
	require.NoError(t, err)
	require.Equal(t, string(before), string(after))
}

// Values of every shape go through every format and many templates; whatever
// fails must fail without a value in its text.
func TestNoErrorShowsAValue(t *testing.T) {
	const canary = "c4n4ry"
	values := []any{
		canary, canary + "\n", " " + canary, canary + "\x00", canary + "\xff", "-----BEGIN " + canary, "-----BEGIN PRIVATE KEY-----\n" + canary + "\n-----END PRIVATE KEY-----\n",
		json.Number(canary),
		[]any{canary, canary + "\xff"},
		map[string]any{"in": canary},
		[]any{map[string]any{"in": canary}},
		strings.Repeat(canary, 300), canary + `>: map has no entry for key "` + canary + `"`,
	}
	templates := []string{
		"{{.Data.v}}", "{{.Data.v.x}}", "{{.Data.v.in.x}}", "{{range .Data.v}}{{.x}}{{end}}", "{{index .Data.v 5}}", "{{index .Data .Data.v}}", "{{get .Data.v .Data.v}}",
		"{{len .Data.v}}{{unix .Data.v}}", "{{unix .Data.v}}", "{{base64Decode .Data.v}}", "{{indent .Data.v .Data.v}}", "{{join .Data.v .Data.v}}", "{{.Data.v 5}}",
		"{{with $x := .Data.v}}{{$x.y}}{{end}}", "{{not .Data.v .Data.v}}", "{{eq .Data.v .Data}}", "{{indent 65 .Data.v}}", "{{.Data.v | print | unix}}", "{{.Lease.v}}", "{{len 5}}",
	}
	failed := 0
	for _, v := range values {
		s := Secret{Data: map[string]any{"v": v, "username": v, "password": v, "private_key": v, "certificate": v}}
		s.Envelope = map[string]any{"data": s.Data, "request_id": v, "lease_duration": v}
		for format := range formats {
			for _, tmpl := range templates {
				for _, encoding := range []string{"", "base64", "hex"} {
					o := dbObject("x", format)
					o.Template = tmpl
					if formats[format].oneKey {
						o.Key, o.Encoding = "v", encoding
					}
					if _, err := Render(o, s); err != nil {
						failed++
						var e *provider.Error
						require.ErrorAs(t, err, &e)
						for ; err != nil; err = errors.Unwrap(err) {
							require.NotContains(t, err.Error(), canary, "format %q, template %q", format, tmpl)
						}
					}
				}
			}
		}
	}
	require.Greater(t, failed, 1000)
}

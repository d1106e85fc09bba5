package aws

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/internal/format"
	"github.com/tenure-csi/tenure/provider"
)

// databaseToken is what a pod gets for the database of the documentation when its
// session has a token.
func databaseToken(t *testing.T, session string) format.Secret {
	t.Helper()
	c := newCloud(t)
	c.keyID, c.token = "ASIAIOSFODNN7EXAMPLE", session
	r := asPod(func(a *provider.AWS) {
		a.Endpoint, a.User, a.Region = "orders.abc123.eu-central-1.rds.amazonaws.com:5432", "app", "eu-central-1"
	})
	r.Source = "rds-iam"
	issued, f := read(t, c.source(t, nil), r)
	require.Nil(t, f)
	return issued.Secret
}

// TestDatabaseTokenInEachFormat has session tokens of the lengths that STS gives,
// in its base64, of which RDS's token has each + / and = as three characters.
func TestDatabaseTokenInEachFormat(t *testing.T) {
	given := func(length int) string {
		return strings.Repeat("IQoJb3JpZ2luX2VjEH8aCWV1/Y2VudHJh+C0x", length)[:length-2] + "=="
	}
	render := func(name string, s format.Secret) (string, error) {
		o := provider.Object{Name: "db", Format: name, Mode: 0o600, Connection: provider.Connection{Host: "orders.abc123.eu-central-1.rds.amazonaws.com", Port: 5432}}
		if name == "template" {
			o.Template = "{{.Data.password}}"
		}
		rendered, err := format.Render(o, s)
		var all strings.Builder
		for _, file := range rendered.Files {
			all.Write(file.Data)
		}
		return all.String(), err
	}
	for _, length := range []int{356, 650, 1000, 1500} {
		s := databaseToken(t, given(length))
		password := s.Data["password"].(string)
		_, signature, _ := strings.Cut(password, "&X-Amz-Signature=")
		require.Greater(t, len(password), length)
		for _, name := range []string{"pgpass", "uri", "my-cnf", "env", "json", "keys", "template"} {
			text, err := render(name, s)
			require.NoError(t, err, "%s: %d", name, length)
			require.Contains(t, text, signature, name)
		}
		text, err := render("pg-service", s)
		if length == 356 {
			require.NoError(t, err)
			require.Contains(t, text, "password="+password+"\n")
			continue
		}
		require.EqualError(t, err, `object "db", field "format": the connection's password is longer than a line of 1 KiB, which a libpq service file can't carry; use format pgpass, uri or env`)
	}

	// What the documentation says of the room.
	const room = 642
	_, err := render("pg-service", databaseToken(t, strings.Repeat("a", room)))
	require.NoError(t, err)
	_, err = render("pg-service", databaseToken(t, strings.Repeat("a", room+1)))
	require.Error(t, err)
}

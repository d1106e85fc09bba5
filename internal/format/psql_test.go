package format

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/provider"
)

// The oracle is the real libpq, in psql: it reads what Render wrote, connects to
// a listener of this test, and what it sends there must be the values that went in.
func TestReadByLibpq(t *testing.T) {
	psql, err := exec.LookPath("psql")
	if err != nil {
		t.Skip("psql is not on PATH")
	}
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	dir := t.TempDir()

	// connect renders and lets psql log in; nil means that psql did not connect.
	connect := func(o provider.Object, user, password string) map[string]string {
		r, err := Render(o, Secret{Data: map[string]any{"username": user, "password": password}})
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		cmd := exec.CommandContext(ctx, psql, "-X", "-w", "-c", "")
		cmd.Env = []string{"HOME=" + dir, "LC_ALL=C.UTF-8"}
		if o.Format == "uri" {
			cmd.Args = append(cmd.Args, "-d", string(r.Files[0].Data))
		} else {
			path := filepath.Join(dir, filepath.Base(o.Name))
			require.NoError(t, os.WriteFile(path, r.Files[0].Data, 0o600))
			cmd.Env = append(cmd.Env, "PGSERVICEFILE="+path, "PGSERVICE=orders")
		}
		require.NoError(t, cmd.Start())
		exited := make(chan struct{})
		go func() { // an accept that nobody will answer ends with psql
			_ = cmd.Wait() // fails: the listener refuses every login
			_ = listener.(*net.TCPListener).SetDeadline(time.Now())
			close(exited)
		}()
		got, err := acceptLogin(listener)
		<-exited
		require.NoError(t, listener.(*net.TCPListener).SetDeadline(time.Time{}))
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		require.NoError(t, err)
		return got
	}
	object := func(name, format, dbname, application string) provider.Object {
		return provider.Object{Name: name, Format: format, Connection: provider.Connection{
			Host: "127.0.0.1", Port: listener.Addr().(*net.TCPAddr).Port, DBName: dbname,
			Params: map[string]string{"sslmode": "disable", "gssencmode": "disable", "application_name": application},
		}}
	}

	r := rand.New(rand.NewPCG(5, 6))
	for range 40 {
		user, password := "u"+hostile(r)+"u", "p"+hostile(r)+"p"
		if strings.Contains(user+password, "\x00") {
			continue
		}
		want := map[string]string{"user": user, "password": password, "database": "d #=%b", "application_name": "a=b #%41+'c"}
		for _, format := range []string{"pg-service", "uri"} {
			if format == "pg-service" && strings.Contains(user+password, "\n") {
				continue
			}
			got := connect(object("dir/orders.conf", format, want["database"], want["application_name"]), user, password)
			delete(got, "client_encoding")
			require.Equal(t, want, got, format)
		}
	}

	t.Run("longest line", func(t *testing.T) {
		longest := strings.Repeat("p", maxServiceLine-len("password="))
		got := connect(object("orders", "pg-service", "d", "a"), "u", longest)
		require.Equal(t, longest, got["password"])
		_, err := Render(object("orders", "pg-service", "d", "a"), Secret{Data: map[string]any{"username": "u", "password": longest + "p"}})
		require.ErrorContains(t, err, "is longer than a line of 1 KiB, which a libpq service file can't carry; use format pgpass, uri or env")
		got = connect(object("orders", "uri", "d", "a"), "u", longest+"p")
		require.Equal(t, longest+"p", got["password"])
	})
}

// acceptLogin plays a PostgreSQL server (protocol 3.0) up to the password, asks
// for it in clear text, and gives what the client sent.
func acceptLogin(listener net.Listener) (map[string]string, error) {
	conn, err := listener.Accept()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return nil, err
	}
	message := func() (string, error) {
		var size uint32
		if err := binary.Read(conn, binary.BigEndian, &size); err != nil {
			return "", err
		}
		if size < 4 || size > 1<<16 {
			return "", errors.New("no message of the protocol")
		}
		b := make([]byte, size-4)
		_, err := io.ReadFull(conn, b)
		return string(b), err
	}
	startup, err := message()
	if err != nil {
		return nil, err
	}
	got := map[string]string{}
	fields := strings.Split(startup[4:], "\x00") // behind the version
	for i := 0; i+1 < len(fields) && fields[i] != ""; i += 2 {
		got[fields[i]] = fields[i+1]
	}
	if _, err := conn.Write([]byte{'R', 0, 0, 0, 8, 0, 0, 0, 3}); err != nil { // AuthenticationCleartextPassword
		return nil, err
	}
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil { // 'p'
		return nil, err
	}
	password, err := message()
	got["password"] = strings.TrimSuffix(password, "\x00")
	return got, err
}

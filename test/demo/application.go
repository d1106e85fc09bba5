package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// The object of the example, and the service that libpq's rules make of it.
const (
	file    = "orders.conf"
	service = "orders"
)

// read is what the application does with its file: any PostgreSQL client that
// knows service files can. The file's host name, which a cluster's DNS would
// resolve, leads to the server of this demo.
func (d *demo) read() (*pgx.ConnConfig, error) {
	c, err := pgx.ParseConfig("service=" + service + " servicefile=" + filepath.Join(d.volume.Target, file))
	if err != nil {
		return nil, fmt.Errorf("reading the service file: %w", err)
	}
	c.LookupFunc = func(context.Context, string) ([]string, error) { return []string{"127.0.0.1"}, nil }
	c.DialFunc = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, d.stack.Postgres.Addr)
	}
	return c, nil
}

// connect opens a session, asks who we are, and closes it.
func connect(ctx context.Context, c *pgx.ConnConfig) (user string, err error) {
	conn, err := pgx.ConnectConfig(ctx, c)
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close(ctx) }()
	err = conn.QueryRow(ctx, "SELECT current_user").Scan(&user)
	return user, err
}

// refused answers how PostgreSQL refuses a login, "" when it does not: it takes
// the user, or is just removing it under the session.
func refused(ctx context.Context, c *pgx.ConnConfig) (string, error) {
	const invalidAuthorization = "28" // class of SQLSTATE
	_, err := connect(ctx, c)
	e := (*pgconn.PgError)(nil)
	if !errors.As(err, &e) {
		return "", err
	}
	if strings.HasPrefix(e.Code, invalidAuthorization) {
		return e.Message, nil
	}
	return "", nil
}

// withoutPassword answers a service file's lines, those alone whose values may be
// seen by anybody.
func withoutPassword(text []byte) string {
	var shown strings.Builder
	for line := range strings.Lines(string(text)) {
		name, _, isSetting := strings.Cut(line, "=")
		if isSetting && !slices.Contains([]string{"host", "port", "dbname", "user"}, name) {
			line = name + "=(not shown)\n"
		}
		shown.WriteString(line)
	}
	return shown.String()
}

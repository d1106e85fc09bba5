// Miniod is a MinIO server for this project's tests, put together from MinIO's own package: a real STS, which grants
// sessions to users and to holders of service account tokens, and a real object store, which enforces their policies.
//
// MinIO's own server is started and stopped as it is. What miniod adds is what a test would otherwise do through MinIO's
// admin protocol: users and a bucket are there before the one line that it prints once it serves,
// `minio ready at http://127.0.0.1:9000`. MinIO's log goes to stderr. SIGTERM or an interrupt ends it.
//
// It is not a MinIO for any other use: secrets are on the command line, and it listens on loopback addresses only.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/minio/madmin-go/v3"
	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	server "github.com/minio/minio/cmd"
)

const (
	rootUser, rootPassword = "minioroot", "minioroot"
	// startTime is how long MinIO may take to answer.
	startTime = time.Minute
)

type options struct {
	listen, dir, bucket         string
	issuerURL, audience, policy string
	users                       []user
}

// user is one who may ask MinIO's STS for sessions of its own rights.
type user struct{ name, secret, policy string }

// parseUser reads the value of -user.
func parseUser(text string) (user, error) {
	parts := strings.SplitN(text, ":", 3)
	if len(parts) != 3 {
		return user{}, errors.New("want name:secret:policy")
	}
	return user{parts[0], parts[1], parts[2]}, nil
}

func main() {
	var o options
	flag.StringVar(&o.listen, "listen", "127.0.0.1:9000", "loopback `address` to serve on")
	flag.StringVar(&o.dir, "storage", "", "`directory` of the objects and of all settings")
	flag.StringVar(&o.bucket, "bucket", "", "`name` of a bucket to make")
	flag.StringVar(&o.issuerURL, "issuer", "", "`URL` of an OpenID configuration: holders of its tokens get sessions")
	flag.StringVar(&o.audience, "audience", "", "the `audience` that such a token must name")
	flag.StringVar(&o.policy, "policy", "readwrite", "MinIO's `policy` that these sessions have")
	flag.Func("user", "`name:secret:policy` of a user to make, with one of MinIO's policies or one of its own as JSON; may be repeated", func(text string) error {
		u, err := parseUser(text)
		o.users = append(o.users, u)
		return err
	})
	flag.Parse()
	if err := o.check(); err != nil {
		fmt.Fprintln(os.Stderr, "miniod:", err)
		os.Exit(1)
	}
	for name, value := range o.environment() {
		_ = os.Setenv(name, value)
	}
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), startTime)
		defer cancel()
		if err := o.prepare(ctx); err != nil {
			fmt.Fprintln(os.Stderr, "miniod: preparing:", err)
			os.Exit(1)
		}
		fmt.Printf("minio ready at http://%s\n", o.listen)
	}()
	server.Main([]string{"minio", "server", "--quiet", "--address", o.listen, o.dir})
}

func (o options) check() error {
	tcp, err := net.ResolveTCPAddr("tcp", o.listen)
	switch {
	case err != nil:
		return fmt.Errorf("reading -listen: %w", err)
	case !tcp.IP.IsLoopback():
		return fmt.Errorf("-listen %s is not a loopback address: this server is for tests only", o.listen)
	case o.dir == "":
		return errors.New("-storage is missing")
	case flag.NArg() > 0:
		return fmt.Errorf("unexpected argument %q", flag.Arg(0))
	}
	return nil
}

// environment is how MinIO is told what has no flag.
func (o options) environment() map[string]string {
	env := map[string]string{
		"MINIO_ROOT_USER": rootUser, "MINIO_ROOT_PASSWORD": rootPassword,
		"MINIO_BROWSER": "off", "MINIO_UPDATE": "off", "MINIO_CALLHOME_ENABLE": "off",
	}
	if o.issuerURL != "" {
		env["MINIO_IDENTITY_OPENID_CONFIG_URL"] = o.issuerURL
		env["MINIO_IDENTITY_OPENID_CLIENT_ID"] = o.audience
		env["MINIO_IDENTITY_OPENID_ROLE_POLICY"] = o.policy
	}
	return env
}

// prepare waits until MinIO answers, and makes what the flags name.
func (o options) prepare(ctx context.Context) error {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	defer transport.CloseIdleConnections()
	creds := credentials.NewStaticV4(rootUser, rootPassword, "")
	admin, err := madmin.NewWithOptions(o.listen, &madmin.Options{Creds: creds, Transport: transport})
	if err != nil {
		return err
	}
	store, err := minio.New(o.listen, &minio.Options{Creds: creds, Transport: transport})
	if err != nil {
		return err
	}
	for {
		if _, err = store.ListBuckets(ctx); err == nil {
			break
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("waiting for MinIO: %w; last: %w", ctx.Err(), err)
		}
	}
	for _, u := range o.users {
		if err := admin.AddUser(ctx, u.name, u.secret); err != nil {
			return fmt.Errorf("making user %s: %w", u.name, err)
		}
		if document := u.policy; strings.HasPrefix(document, "{") {
			u.policy = u.name
			if err := admin.AddCannedPolicy(ctx, u.policy, []byte(document)); err != nil {
				return fmt.Errorf("making the policy of user %s: %w", u.name, err)
			}
		}
		if _, err := admin.AttachPolicy(ctx, madmin.PolicyAssociationReq{Policies: []string{u.policy}, User: u.name}); err != nil {
			return fmt.Errorf("giving user %s a policy: %w", u.name, err)
		}
	}
	if o.bucket == "" {
		return nil
	}
	return store.MakeBucket(ctx, o.bucket, minio.MakeBucketOptions{})
}

// Sidecars stands in for the two programs that the driver's chart puts beside the
// driver, node-driver-registrar and livenessprobe: no module proxy serves them. It
// takes the flags that the chart gives them:
//
//	sidecars registrar --csi-address=/csi/csi.sock --kubelet-registration-path=/var/lib/kubelet/plugins/…/csi.sock
//	sidecars livenessprobe --csi-address=/csi/csi.sock --http-endpoint=0.0.0.0:9808
//
// It is not in the program that is Kubernetes, which would not fit into the memory
// that the chart gives them.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// options are the flags of both programs.
type options struct {
	driver       string // its socket here
	kubeletPath  string // its socket for kubelet
	httpEndpoint string
	timeout      time.Duration // of a probe
}

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: sidecars registrar|livenessprobe …")
		os.Exit(2)
	}
	var o options
	flags := flag.NewFlagSet(os.Args[1], flag.ExitOnError)
	flags.StringVar(&o.driver, "csi-address", "/run/csi/socket", "the driver's socket")
	flags.StringVar(&o.kubeletPath, "kubelet-registration-path", "", "the driver's socket for kubelet")
	flags.StringVar(&o.httpEndpoint, "http-endpoint", "", "address to serve /healthz on")
	flags.DurationVar(&o.timeout, "probe-timeout", time.Second, "how long the driver may take to answer")
	flags.Int("v", 0, "taken, and ignored")
	_ = flags.Parse(os.Args[2:]) // it exits

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	err := o.run(ctx, os.Args[1])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, os.Args[1]+":", err)
		os.Exit(1)
	}
}

// run waits for the driver, and then serves until ctx ends.
func (o options) run(ctx context.Context, program string) error {
	conn, err := grpc.NewClient("unix://"+o.driver, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		return fmt.Errorf("connecting to the driver: %w", err)
	}
	defer func() { _ = conn.Close() }()
	driver := csi.NewIdentityClient(conn)
	info, err := driver.GetPluginInfo(ctx, &csi.GetPluginInfoRequest{})
	if err != nil {
		return fmt.Errorf("asking the driver for its name: %w", err)
	}
	switch program {
	case "registrar":
		return o.register(ctx, info.GetName())
	case "livenessprobe":
		return o.probe(ctx, driver)
	}
	return fmt.Errorf("choosing a program: there is no %q", program)
}

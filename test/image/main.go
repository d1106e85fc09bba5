// Command image builds Tenure's container image without a container engine: an
// OCI archive with an index of one image for each platform, and beside it a list
// of each binary's modules. Equal sources, Go and arguments give equal bytes.
//
//	image -o bin/tenure-image.tar -ref localhost/tenure:0.1.0 -version 0.1.0
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
)

// options say what to build.
type options struct {
	output    string   // the archive
	ref       string   // the image's name in it
	source    string   // the repository's root
	version   string   // what `tenure version` says
	revision  string   // the commit
	created   int64    // seconds since 1970: the commit's time, as the image's and its files'
	platforms []string // GOARCH, on linux
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	err := build(ctx, parse())
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func parse() options {
	var o options
	var platforms string
	flag.StringVar(&o.output, "o", "tenure-image.tar", "archive to write")
	flag.StringVar(&o.ref, "ref", "localhost/tenure:devel", "image's name in the archive")
	flag.StringVar(&o.source, "source", ".", "repository's root")
	flag.StringVar(&o.version, "version", "devel", "version")
	flag.StringVar(&o.revision, "revision", "", "commit")
	flag.Int64Var(&o.created, "created", 0, "seconds since 1970 that the image and its files are dated")
	flag.StringVar(&platforms, "platforms", "amd64,arm64", "processors, separated by commas")
	flag.Parse()
	o.platforms = strings.Split(platforms, ",")
	return o
}

// build writes the archive and the lists.
func build(ctx context.Context, o options) (err error) {
	work, err := os.MkdirTemp("", "tenure-image-*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	var index v1.ImageIndex = empty.Index
	for _, arch := range o.platforms {
		image, err := o.image(ctx, arch, filepath.Join(work, arch))
		if err != nil {
			return fmt.Errorf("building for linux/%s: %w", arch, err)
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add: image, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}},
		})
	}
	index = mutate.Annotations(index, o.labels()).(v1.ImageIndex)
	digest, err := writeArchive(o, index, filepath.Join(work, "layout"))
	if err != nil {
		return fmt.Errorf("writing %s: %w", o.output, err)
	}
	fmt.Printf("built %s: %s@%s for %s\n", o.output, o.ref, digest, strings.Join(o.platforms, ", "))
	return nil
}

// image builds the binary and the image around it, and writes its list beside the
// archive.
func (o options) image(ctx context.Context, arch, binary string) (v1.Image, error) {
	if err := o.compile(ctx, arch, binary); err != nil {
		return nil, err
	}
	list, err := modules(binary, o.version)
	if err != nil {
		return nil, err
	}
	beside := strings.TrimSuffix(o.output, filepath.Ext(o.output)) + "-" + arch + ".cdx.json"
	if err := os.WriteFile(beside, list, 0o644); err != nil { //nolint:gosec // for everybody to read
		return nil, err
	}
	program, err := os.ReadFile(binary)
	if err != nil {
		return nil, err
	}
	layer, err := o.layer([]file{
		{"etc/ssl/certs/ca-certificates.crt", 0o644, publicCAs()},
		{"sbom.cdx.json", 0o644, list},
		{"tenure", 0o755, program},
	})
	if err != nil {
		return nil, err
	}
	return o.wrap(arch, layer)
}

// labels are the image's, as the OCI image specification names them.
func (o options) labels() map[string]string {
	return map[string]string{
		"org.opencontainers.image.title":       "tenure",
		"org.opencontainers.image.description": "A provider for the Secrets Store CSI driver that keeps leases",
		"org.opencontainers.image.source":      "https://github.com/tenure-csi/tenure",
		"org.opencontainers.image.licenses":    "Apache-2.0",
		"org.opencontainers.image.version":     o.version,
		"org.opencontainers.image.revision":    o.revision,
		"org.opencontainers.image.created":     o.when().Format(time.RFC3339),
	}
}

func (o options) when() time.Time { return time.Unix(o.created, 0).UTC() }

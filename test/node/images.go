package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"
)

// reference is what names an image, as charts write it.
type reference struct{ repository, tag string }

// importImages gives containerd the image that `make image` makes, and those that
// the driver's chart asks for by default, by the names that it gives them.
func (n *Node) importImages(ctx context.Context) error {
	out, err := n.ctr(ctx, "images", "import", filepath.Join(n.bin, "node-image.tar"))
	if err != nil {
		return err
	}
	// unpacking localhost/tenure:v0.1.0 (sha256:…)...done
	words := strings.Fields(out)
	if len(words) < 2 {
		return fmt.Errorf("importing Tenure's image: no name in %q", out)
	}
	colon := strings.LastIndex(words[1], ":")
	n.tenure = reference{words[1][:colon], words[1][colon+1:]}
	images, err := n.driverImages()
	if err != nil {
		return err
	}
	for _, i := range images {
		if err := n.Import(ctx, i); err != nil {
			return err
		}
	}
	return nil
}

// driverImages answers the images of the driver's pod, and of the jobs of its chart
// that apply its types.
func (n *Node) driverImages() ([]Image, error) {
	chart := filepath.Join(n.bin, "chart", "tenure", "charts", subchart)
	text, err := os.ReadFile(filepath.Join(chart, "values.yaml"))
	if err != nil {
		return nil, fmt.Errorf("reading the driver's chart: %w", err)
	}
	type image struct{ Repository, Tag string }
	var values struct {
		Linux struct {
			Image, RegistrarImage, LivenessProbeImage image
			CRDs                                      struct{ Image image }
		}
	}
	if err := yaml.Unmarshal(text, &values); err != nil {
		return nil, fmt.Errorf("reading the driver's chart: %w", err)
	}
	types, err := filepath.Glob(filepath.Join(chart, "crds", "*.yaml"))
	if err != nil || len(types) == 0 {
		return nil, errors.Join(errors.New("reading the driver's chart: it has no types"), err)
	}
	kubectl := map[string]string{"/kube": filepath.Join(n.bin, "kube")}
	for _, path := range types {
		kubectl["/crds/"+filepath.Base(path)] = path
	}
	name := func(i image) string { return i.Repository + ":" + i.Tag }
	sidecars := map[string]string{"/sidecars": filepath.Join(n.bin, "csi-sidecars")}
	return []Image{
		{
			Name: name(values.Linux.Image), Libraries: true, Entrypoint: []string{"/secrets-store-csi"},
			Files: map[string]string{
				"/secrets-store-csi": filepath.Join(n.bin, subchart), "/bin/mount": "/bin/mount", "/bin/umount": "/bin/umount",
			},
		},
		{Name: name(values.Linux.RegistrarImage), Files: sidecars, Entrypoint: []string{"/sidecars", "registrar"}},
		{Name: name(values.Linux.LivenessProbeImage), Files: sidecars, Entrypoint: []string{"/sidecars", "livenessprobe"}},
		{Name: name(values.Linux.CRDs.Image), Files: kubectl, Entrypoint: []string{"/kube", "kubectl"}},
	}, nil
}

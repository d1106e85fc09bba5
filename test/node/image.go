package node

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// Image is a container image made of files of this machine, in one layer. There is
// no registry: what a pod names must have been imported.
type Image struct {
	Name       string            // "localhost/client:1"
	Files      map[string]string // path in the image → file here
	Libraries  bool              // add the shared libraries that Files need
	Entrypoint []string
	Command    []string
}

// Import gives the image to the node's containerd.
func (n *Node) Import(ctx context.Context, i Image) error {
	archive, err := i.archive(ctx)
	if err != nil {
		return fmt.Errorf("making the image %s: %w", i.Name, err)
	}
	path := filepath.Join(scratch, "image.tar")
	if err := writeFile(path, archive); err != nil {
		return err
	}
	defer func() { _ = os.Remove(path) }()
	_, err = n.ctr(ctx, "images", "import", path)
	return err
}

// archive answers the image as `docker save` writes one.
func (i Image) archive(ctx context.Context) ([]byte, error) {
	files := i.Files
	if i.Libraries {
		var err error
		if files, err = withLibraries(ctx, files); err != nil {
			return nil, err
		}
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	for _, dir := range []string{"tmp/", "proc/", "sys/", "dev/"} {
		if err := w.WriteHeader(&tar.Header{Name: dir, Mode: 0o1777, Typeflag: tar.TypeDir}); err != nil {
			return nil, err
		}
	}
	for path, from := range files {
		content, err := os.ReadFile(from)
		if err != nil {
			return nil, err
		}
		if err := add(w, strings.TrimPrefix(path, "/"), 0o755, content); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return i.wrap(layer.Bytes())
}

// wrap puts a layer into an archive with the image's configuration.
func (i Image) wrap(layer []byte) ([]byte, error) {
	sum := sha256.Sum256(layer)
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux",
		"config": map[string]any{"Entrypoint": i.Entrypoint, "Cmd": i.Command, "Env": []string{"PATH=/bin"}, "User": "0:0", "WorkingDir": "/"},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + hex.EncodeToString(sum[:])}},
	})
	if err != nil {
		return nil, err
	}
	manifest, err := json.Marshal([]map[string]any{{"Config": "config.json", "RepoTags": []string{i.Name}, "Layers": []string{"layer.tar"}}})
	if err != nil {
		return nil, err
	}
	var all bytes.Buffer
	w := tar.NewWriter(&all)
	for _, f := range []struct {
		name    string
		content []byte
	}{{"layer.tar", layer}, {"config.json", config}, {"manifest.json", manifest}} {
		if err := add(w, f.name, 0o644, f.content); err != nil {
			return nil, err
		}
	}
	return all.Bytes(), w.Close()
}

func add(w *tar.Writer, name string, mode int64, content []byte) error {
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: int64(len(content)), Typeflag: tar.TypeReg}); err != nil {
		return err
	}
	_, err := w.Write(content)
	return err
}

// withLibraries answers files and, at their own paths, what the dynamic linker
// would load for them.
func withLibraries(ctx context.Context, files map[string]string) (map[string]string, error) {
	all := map[string]string{}
	for path, from := range files {
		all[path] = from
		out, err := exec.CommandContext(ctx, "ldd", from).CombinedOutput() //nolint:gosec // the test's own choice of files
		if strings.Contains(string(out), "not a dynamic executable") {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("listing the libraries of %s: %w: %s", from, err, out)
		}
		for word := range slices.Values(strings.Fields(string(out))) {
			if strings.HasPrefix(word, "/") {
				all[word] = word
			}
		}
	}
	return all, nil
}

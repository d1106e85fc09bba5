package main

import (
	"archive/tar"
	"bytes"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// file is one of the image's, owned by root.
type file struct {
	name  string
	mode  int64
	bytes []byte
}

// layer packs the files and the directories that they are in.
func (o options) layer(files []file) (v1.Layer, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	made := map[string]bool{".": true}
	var dirs func(name string) error
	dirs = func(name string) error {
		if made[name] {
			return nil
		}
		made[name] = true
		if err := dirs(path.Dir(name)); err != nil {
			return err
		}
		return w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755, ModTime: o.when()})
	}
	for _, f := range files {
		if err := dirs(path.Dir(f.name)); err != nil {
			return nil, err
		}
		if err := writeFile(w, f.name, f.mode, o.when(), f.bytes); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(out.Bytes())), nil
	}, tarball.WithMediaType(types.OCILayer))
}

func writeFile(w *tar.Writer, name string, mode int64, when time.Time, content []byte) error {
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(content)), ModTime: when}); err != nil {
		return err
	}
	_, err := w.Write(content)
	return err
}

// wrap makes an image of the layer. The Dockerfile says the same.
func (o options) wrap(arch string, layer v1.Layer) (v1.Image, error) {
	image := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	image, err := mutate.Append(image, mutate.Addendum{
		Layer: layer, History: v1.History{Created: v1.Time{Time: o.when()}, CreatedBy: "test/image"},
	})
	if err != nil {
		return nil, err
	}
	config, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Created = "linux", arch, v1.Time{Time: o.when()}
	config.Config = v1.Config{
		User: "0:0", Env: []string{"PATH=/"}, Entrypoint: []string{"/tenure"}, Cmd: []string{"serve"}, Labels: o.labels(),
	}
	return mutate.ConfigFile(image, config)
}

// writeArchive writes the index as an OCI image layout in a tar file, and answers
// the index's digest.
func writeArchive(o options, index v1.ImageIndex, dir string) (v1.Hash, error) {
	digest, err := index.Digest()
	if err != nil {
		return digest, err
	}
	l, err := layout.Write(dir, empty.Index)
	if err != nil {
		return digest, err
	}
	// The first name is read by skopeo and podman, the second by containerd.
	err = l.AppendIndex(index, layout.WithAnnotations(map[string]string{
		"org.opencontainers.image.ref.name": o.ref, "io.containerd.image.name": o.ref,
	}))
	if err != nil {
		return digest, err
	}
	out, err := os.Create(o.output)
	if err != nil {
		return digest, err
	}
	if err := o.pack(out, os.DirFS(dir)); err != nil {
		out.Close()
		return digest, err
	}
	return digest, out.Close()
}

// pack writes the files in the order of their names.
func (o options) pack(out io.Writer, files fs.FS) error {
	w := tar.NewWriter(out)
	err := fs.WalkDir(files, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := fs.ReadFile(files, name)
		if err != nil {
			return err
		}
		return writeFile(w, filepath.ToSlash(name), 0o644, o.when(), content)
	})
	if err != nil {
		return err
	}
	return w.Close()
}

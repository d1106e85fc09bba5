package main

import (
	"archive/tar"
	"bytes"
	"crypto/x509"
	"debug/elf"
	"encoding/pem"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"testing"

	"github.com/CycloneDX/cyclonedx-go"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/stretchr/testify/require"
)

const (
	repository = "../.."
	noon       = 1789041600 // 2026-09-10 12:00 UTC
)

// built builds an archive for this machine's processor and answers its path.
func built(t *testing.T, source string) string {
	t.Helper()
	o := options{
		output: filepath.Join(t.TempDir(), "image.tar"), ref: "localhost/tenure:1.2.3", source: source,
		version: "1.2.3", revision: "c0ffee", created: noon, platforms: []string{runtime.GOARCH},
	}
	require.NoError(t, build(t.Context(), o))
	return o.output
}

// unpack reads a tar: the headers in their order, and writes the files below dir.
func unpack(t *testing.T, in io.Reader, dir string) (headers []tar.Header) {
	t.Helper()
	for r := tar.NewReader(in); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return headers
		}
		require.NoError(t, err)
		headers = append(headers, *h)
		if h.Typeflag == tar.TypeDir {
			continue
		}
		path := filepath.Join(dir, h.Name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		content, err := io.ReadAll(r)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(path, content, os.FileMode(h.Mode)))
	}
}

// opened reads an archive with the registry library, whose own checks (digests,
// sizes, media types) it must pass, and answers the index and its only image.
func opened(t *testing.T, archive string) (v1.Descriptor, v1.Image) {
	t.Helper()
	dir := t.TempDir()
	in, err := os.Open(archive)
	require.NoError(t, err)
	defer in.Close()
	unpack(t, in, dir)
	outer, err := layout.ImageIndexFromPath(dir)
	require.NoError(t, err)
	require.NoError(t, validate.Index(outer))
	manifest, err := outer.IndexManifest()
	require.NoError(t, err)
	require.Len(t, manifest.Manifests, 1, "importers take the first index as the image")
	inner, err := outer.ImageIndex(manifest.Manifests[0].Digest)
	require.NoError(t, err)
	platforms, err := inner.IndexManifest()
	require.NoError(t, err)
	require.Len(t, platforms.Manifests, 1)
	require.Equal(t, "linux/"+runtime.GOARCH, platforms.Manifests[0].Platform.String())
	image, err := inner.Image(platforms.Manifests[0].Digest)
	require.NoError(t, err)
	return manifest.Manifests[0], image
}

func TestImage(t *testing.T) {
	archive := built(t, repository)
	index, image := opened(t, archive)
	require.Equal(t, "localhost/tenure:1.2.3", index.Annotations["org.opencontainers.image.ref.name"])
	require.Equal(t, "localhost/tenure:1.2.3", index.Annotations["io.containerd.image.name"])

	config, err := image.ConfigFile()
	require.NoError(t, err)
	require.Equal(t, "linux", config.OS)
	require.Equal(t, runtime.GOARCH, config.Architecture)
	require.Equal(t, int64(noon), config.Created.Unix())
	require.Equal(t, "0:0", config.Config.User)
	require.Equal(t, []string{"/tenure"}, config.Config.Entrypoint)
	require.Equal(t, []string{"serve"}, config.Config.Cmd)
	require.Equal(t, "1.2.3", config.Config.Labels["org.opencontainers.image.version"])
	require.Equal(t, "c0ffee", config.Config.Labels["org.opencontainers.image.revision"])
	require.Equal(t, "2026-09-10T12:00:00Z", config.Config.Labels["org.opencontainers.image.created"])

	layers, err := image.Layers()
	require.NoError(t, err)
	require.Len(t, layers, 1)
	content, err := layers[0].Uncompressed()
	require.NoError(t, err)
	root := t.TempDir()
	modes := map[string]int64{}
	for _, h := range unpack(t, content, root) {
		modes[h.Name] = h.Mode
		require.Equal(t, []any{0, 0, int64(noon)}, []any{h.Uid, h.Gid, h.ModTime.Unix()}, h.Name)
	}
	require.Equal(t, map[string]int64{
		"etc/": 0o755, "etc/ssl/": 0o755, "etc/ssl/certs/": 0o755, "etc/ssl/certs/ca-certificates.crt": 0o644, "sbom.cdx.json": 0o644, "tenure": 0o755,
	}, modes, "nothing else is in the image")

	said, err := exec.CommandContext(t.Context(), filepath.Join(root, "tenure"), "version").CombinedOutput()
	require.NoError(t, err)
	require.Equal(t, "tenure 1.2.3\n", string(said))
	requireStatic(t, filepath.Join(root, "tenure"))

	list, err := os.ReadFile(filepath.Join(root, "sbom.cdx.json"))
	require.NoError(t, err)
	beside, err := os.ReadFile(archive[:len(archive)-len(".tar")] + "-" + runtime.GOARCH + ".cdx.json")
	require.NoError(t, err)
	require.Equal(t, list, beside)
	requireModules(t, list, filepath.Join(root, "tenure"))
}

// requireStatic checks that the binary asks for no loader: the image has none.
func requireStatic(t *testing.T, binary string) {
	t.Helper()
	program, err := elf.Open(binary)
	require.NoError(t, err)
	defer program.Close()
	for _, p := range program.Progs {
		require.NotEqual(t, elf.PT_INTERP, p.Type)
	}
}

var dependency = regexp.MustCompile(`(?m)^\tdep\t(\S+)\t(\S+)`)

// requireModules compares the list with what the go command reads in the binary.
func requireModules(t *testing.T, list []byte, binary string) {
	t.Helper()
	var bom cyclonedx.BOM
	require.NoError(t, cyclonedx.NewBOMDecoder(bytes.NewReader(list), cyclonedx.BOMFileFormatJSON).Decode(&bom))
	require.Equal(t, "pkg:golang/github.com/tenure-csi/tenure@1.2.3", bom.Metadata.Component.PackageURL)
	said, err := exec.CommandContext(t.Context(), "go", "version", "-m", binary).Output()
	require.NoError(t, err)
	want := []string{"pkg:golang/stdlib@" + runtime.Version()[len("go"):]}
	for _, m := range dependency.FindAllStringSubmatch(string(said), -1) {
		want = append(want, "pkg:golang/"+m[1]+"@"+m[2])
	}
	require.Greater(t, len(want), 10)
	var got []string
	for _, c := range *bom.Components {
		got = append(got, c.PackageURL)
	}
	require.Equal(t, want, got)
}

// TestSameBytes builds from a copy of the sources elsewhere, which git knows
// nothing of, a second later.
func TestSameBytes(t *testing.T) {
	elsewhere := t.TempDir()
	for _, dir := range []string{"cmd", "internal", "provider"} {
		require.NoError(t, os.CopyFS(filepath.Join(elsewhere, dir), os.DirFS(filepath.Join(repository, dir))))
	}
	for _, name := range []string{"go.mod", "go.sum"} {
		text, err := os.ReadFile(filepath.Join(repository, name))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(elsewhere, name), text, 0o644))
	}
	first, err := os.ReadFile(built(t, repository))
	require.NoError(t, err)
	second, err := os.ReadFile(built(t, elsewhere))
	require.NoError(t, err)
	require.True(t, bytes.Equal(first, second), "two builds of the same sources differ")
}

// TestDockerfileAgrees holds the other way to build the image to this one.
func TestDockerfileAgrees(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(repository, "Dockerfile"))
	require.NoError(t, err)
	for _, line := range []string{"ENV PATH=/", "USER 0:0", `ENTRYPOINT ["/tenure"]`, `CMD ["serve"]`} {
		require.Regexp(t, "(?m)^"+regexp.QuoteMeta(line)+"$", string(text))
	}
}

func TestPublicCAs(t *testing.T) {
	count := 0
	for rest := publicCAs(); len(rest) > 0; count++ {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		require.NotNil(t, block)
		ca, err := x509.ParseCertificate(block.Bytes)
		require.NoError(t, err)
		require.True(t, ca.IsCA, ca.Subject)
	}
	require.Greater(t, count, 50)
}

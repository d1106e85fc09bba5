module github.com/tenure-csi/tenure/test/image

go 1.26.0

require (
	github.com/CycloneDX/cyclonedx-go v0.12.0 // the format of the list of modules
	github.com/google/go-containerregistry v0.22.1 // images, indexes and their checks
	github.com/stretchr/testify v1.12.1
	golang.org/x/crypto/x509roots/fallback v0.0.0-20261030153154-30a33513ff6d // the CAs of the public web, pinned
)

require (
	github.com/google/go-cmp v0.7.0 // indirect
	github.com/klauspost/compress v1.19.2 // indirect
	github.com/opencontainers/go-digest v1.0.0 // indirect
	github.com/opencontainers/image-spec v1.1.1 // indirect
	go.yaml.in/yaml/v3 v3.0.5 // indirect
	golang.org/x/sync v0.22.0 // indirect
)

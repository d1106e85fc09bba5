# Everything that is done with this repository. `make help` lists it.
SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS   += --no-print-directory

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
IMAGE   ?= localhost/tenure:$(VERSION)
PLATFORMS ?= amd64,arm64
ARCHIVE ?= bin/tenure-image.tar
FUZZTIME ?= 20s
# In CI a failed test runs once more, alone, and is named as unstable if it passes then.
TOTALS  := bin/totals $(if $(CI),-again)
PRODUCT := ./provider/... ./internal/... ./cmd/...
# The vulnerability scanner is not in the tools module: it is no part of a build.
GOVULNCHECK := golang.org/x/vuln/cmd/govulncheck@v1.9.0

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: setup-postgres build vaultd ## show a database credential's life: Vault, PostgreSQL and the CSI driver's client, all on this machine
	@CGO_ENABLED=0 test/scripts/with-heartbeat.sh demo go -C test build -o ../bin/demo ./demo
	@cd test && ../bin/demo

.PHONY: test
test: setup-test build vaultd miniod bin/helm bin/totals ## run every test but the race detector's, installing what they need; ends with the totals
	@$(TOTALS) 'go test -json -timeout=15m ./...' 'go -C test test -json -p=1 -count=1 -timeout=20m ./...' 'go -C test/image test -json -count=1 ./...'

.PHONY: unit
unit: bin/totals ## run the product's tests: no other program is needed
	@$(TOTALS) 'go test -json -timeout=15m ./...'

.PHONY: integration
integration: setup-test build vaultd miniod bin/helm bin/totals ## run the tests against a real Vault, PostgreSQL, MariaDB and MinIO
	@$(TOTALS) 'go -C test test -json -p=1 -count=1 -timeout=20m ./...'

.PHONY: conformance
conformance: setup-postgres build vaultd ## run the HashiCorp provider's cases through the CSI driver's own client: a line a case
	@cd test/conformance && go test -count=1

.PHONY: faults
faults: setup-postgres build vaultd ## run test/faults, the kills, outages and refusals that need real parts (models of more are in make unit): a line a case, and the count
	@cd test/faults && go test -count=1 -timeout=20m

.PHONY: test-aws
test-aws: setup-test build vaultd miniod bin/totals ## run the tests of AWS: Vault's engine and login, a real STS and object store (MinIO's), awscli
	@$(TOTALS) 'go -C test test -json -count=1 -timeout=10m ./aws'

.PHONY: e2e
e2e: setup-postgres build node vaultd ## run the cases on a real Kubernetes node of this machine (root; builds Kubernetes, minutes when cold): a line a case
	@cd test/e2e && go test -tags e2e -count=1 -timeout=60m

.PHONY: node-up
node-up: node ## run a Kubernetes node with Tenure and the driver on this machine until Ctrl-C or make node-down, and say how to use it
	@go -C test build -o ../bin/node ./node/up
	@bin/node

.PHONY: node-down
node-down: ## end the node of make node-up
	@kill "$$(cat bin/node.pid)"

.PHONY: race
race: setup-race bin/totals ## run the product's tests under the race detector
	@CGO_ENABLED=1 $(TOTALS) 'go test -json -race -short -timeout=20m $(PRODUCT)'

.PHONY: bench
bench: setup-postgres build vaultd ## measure first mounts beside a bare client, republishes, memory and restart; compare within one run
	@cd test && go test -run '^$$' -bench . -benchtime 5x -count=1 ./bench

.PHONY: fuzz
fuzz: ## run each fuzz target for FUZZTIME (default 20s)
	@grep -rEo --include='*_test.go' '^func Fuzz[A-Za-z0-9_]+' provider internal cmd | while IFS=: read -r file target; do \
		echo "fuzz: $${file%/*} $${target#func }"; \
		go test "./$${file%/*}" -run '^$$' -fuzz "^$${target#func }\$$" -fuzztime $(FUZZTIME); \
	done

.PHONY: lint
lint: setup-lint bin/golangci-lint chart ## check the code and the chart: go vet, golangci-lint, shellcheck, helm lint, and that go.mod files are tidy
	go vet ./...
	go -C test vet -tags e2e ./...
	go -C test/image vet ./...
	bin/golangci-lint run --allow-parallel-runners ./...
	cd test && ../bin/golangci-lint run --allow-parallel-runners --build-tags e2e --config ../.golangci.yml ./...
	cd test/image && ../../bin/golangci-lint run --allow-parallel-runners --config ../../.golangci.yml ./...
	shellcheck .ci/run test/scripts/*.sh
	go mod tidy -diff
	go -C test mod tidy -diff
	go -C test/image mod tidy -diff

.PHONY: build
build: ## build bin/tenure: static, without cgo, with the version from git
	@CGO_ENABLED=0 go build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/tenure ./cmd/tenure
	@echo "built bin/tenure $(VERSION)"

.PHONY: vaultd
vaultd: ## build bin/vaultd, the Vault that the tests use (minutes when cold), unless TENURE_TEST_VAULTD names one
	@if [ -n "$${TENURE_TEST_VAULTD:-}" ]; then echo "vaultd: using $$TENURE_TEST_VAULTD"; exit; fi; \
	if [ ! -x bin/vaultd ]; then echo "vaultd: building Vault for the tests; the first time takes 2 to 5 minutes on 2 cores"; fi; \
	CGO_ENABLED=0 test/scripts/with-heartbeat.sh vaultd go -C test/vaultd build -trimpath -ldflags '-s -w' -o ../../bin/vaultd .

.PHONY: miniod
miniod: ## build bin/miniod, the MinIO that the tests use (minutes when cold), unless TENURE_TEST_MINIOD names one
	@if [ -n "$${TENURE_TEST_MINIOD:-}" ]; then echo "miniod: using $$TENURE_TEST_MINIOD"; exit; fi; \
	if [ ! -x bin/miniod ]; then echo "miniod: building MinIO for the tests; the first time takes 2 to 5 minutes on 2 cores"; fi; \
	CGO_ENABLED=0 test/scripts/with-heartbeat.sh miniod go -C test/miniod build -trimpath -ldflags '-s -w' -o ../../bin/miniod .

.PHONY: node
node: setup-node chart bin/kube bin/csi-sidecars bin/secrets-store-csi-driver
	@$(MAKE) image ARCHIVE=bin/node-image.tar PLATFORMS="$$(go env GOARCH)"

# The version that Kubernetes' own build would stamp.
KUBE_FLAGS := -X k8s.io/component-base/version.gitVersion=v1.34.4 -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=34
bin/kube: $(wildcard test/kube/*.go test/kube/go.*)
	@echo "kube: building Kubernetes for the tests' node; the first time takes 7 to 15 minutes on 2 cores"
	@CGO_ENABLED=0 test/scripts/with-heartbeat.sh kube go -C test/kube build -trimpath -ldflags '-s -w $(KUBE_FLAGS)' -o ../../bin/kube .

bin/csi-sidecars: $(wildcard test/kube/sidecars/* test/kube/go.mod)
	@CGO_ENABLED=0 test/scripts/with-heartbeat.sh sidecars go -C test/kube build -trimpath -ldflags '-s -w' -o ../../bin/csi-sidecars ./sidecars

bin/secrets-store-csi-driver: $(wildcard test/csidriver/* test/mlog/*)
	@CGO_ENABLED=0 test/scripts/with-heartbeat.sh driver go -C test/csidriver build -trimpath -ldflags '-s -w' -o ../../bin/secrets-store-csi-driver \
		sigs.k8s.io/secrets-store-csi-driver/cmd/secrets-store-csi-driver

.PHONY: image
image: ## build ARCHIVE (bin/tenure-image.tar), an OCI archive of the image IMAGE for amd64 and arm64; needs no container engine
	@mkdir -p bin
	@go -C test/image run . -o $(CURDIR)/$(ARCHIVE) -platforms $(PLATFORMS) -source $(CURDIR) -ref $(IMAGE) -version $(VERSION) \
		-revision "$$(git rev-parse HEAD 2>/dev/null)" -created "$$(git log -1 --format=%ct 2>/dev/null || echo 0)"

.PHONY: chart
chart: bin/helm ## check the Helm chart and pack it with the driver's own into bin/tenure-*.tgz
	@test/scripts/chart.sh bin/chart
	@bin/helm lint --strict --quiet --values manifests/values.yaml bin/chart/tenure
	@bin/helm package --destination bin bin/chart/tenure

.PHONY: manifests
manifests: bin/helm ## render manifests/ from the chart
	@test/scripts/manifests.sh >manifests/tenure.yaml

.PHONY: setup
setup: ## install the Debian packages that tests and checks need, those that are missing (apt-get, needs root)
	@test/scripts/setup.sh postgres mariadb openssl jq awscli gcc shellcheck

.PHONY: setup-test setup-postgres setup-node setup-race setup-lint
setup-test:
	@test/scripts/setup.sh postgres mariadb openssl jq awscli
setup-postgres:
	@test/scripts/setup.sh postgres
setup-node:
	@test/scripts/setup.sh etcd containerd runc cni busybox
setup-race:
	@test/scripts/setup.sh gcc
setup-lint:
	@test/scripts/setup.sh shellcheck

.PHONY: vulncheck
vulncheck: ## look for known vulnerabilities (needs the Go vulnerability database)
	go run $(GOVULNCHECK) ./...

.PHONY: clean
clean: ## remove what was built
	rm -rf bin

bin/totals: test/totals/main.go
	@go -C test build -o ../bin/totals ./totals

bin/golangci-lint: test/tools/go.mod
	@echo "lint: building golangci-lint; the first time takes some minutes"
	@CGO_ENABLED=0 test/scripts/with-heartbeat.sh lint go -C test/tools build -o ../../bin/golangci-lint github.com/golangci/golangci-lint/v2/cmd/golangci-lint

# Helm learns at its link which Kubernetes it renders for where none is asked.
HELM_KUBERNETES := $(foreach p,chartutil lint/rules,-X helm.sh/helm/v3/pkg/$(p).k8sVersionMajor=1 -X helm.sh/helm/v3/pkg/$(p).k8sVersionMinor=34)

bin/helm: test/helm/go.mod
	@echo "helm: building Helm; the first time takes some minutes"
	@CGO_ENABLED=0 test/scripts/with-heartbeat.sh helm go -C test/helm build -trimpath -ldflags '-s -w $(HELM_KUBERNETES)' -o ../../bin/helm helm.sh/helm/v3/cmd/helm

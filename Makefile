# What a developer does, by name. `make` alone lists it. Needs Go and make; what else a target needs, it installs.

GO      ?= go
TOOLS   := $(CURDIR)/.tools/bin
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
REVISION := $(shell git rev-parse HEAD 2>/dev/null)

# The tools of lint, pinned; each is installed once for its version.
GOFUMPT_VERSION     := v0.10.0
STATICCHECK_VERSION := v0.7.0
GOLANGCI_VERSION    := v2.12.2
GOFUMPT     := $(TOOLS)/.gofumpt-$(GOFUMPT_VERSION)
STATICCHECK := $(TOOLS)/.staticcheck-$(STATICCHECK_VERSION)
GOLANGCI    := $(TOOLS)/.golangci-lint-$(GOLANGCI_VERSION)

# Its findings are kept with absolute paths: a cache of its own keeps those of another checkout out.
export GOLANGCI_LINT_CACHE := $(TOOLS)/.golangci-cache

# RACE=1, or CI as most CI systems set it, turns the race detector on; it needs a C compiler.
RACEFLAG  := $(if $(or $(CI),$(RACE)),-race)
TESTFLAGS ?=
LISTEN    ?= 127.0.0.1:5000
BENCH     ?= full

# The packages with tests that need programs which are not Go; edgesim is a module of its own.
INTEROP = $(shell cd test && grep -rl --include='*_test.go' --exclude-dir=edgesim '^//go:build interop' . | xargs -n1 dirname | sort -u)

# Images are dated by the commit, so that building one twice gives the same bytes.
export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 0)
BUILT      = $(shell date -u -d @$(SOURCE_DATE_EPOCH) +%Y-%m-%dT%H:%M:%SZ 2>/dev/null)
BUILDFLAGS = -trimpath -ldflags "-s -w -X main.version=$(VERSION) -X main.built=$(BUILT)"

.DEFAULT_GOAL := help
.PHONY: help demo run build test test-interop test-interop-long test-chaos-short test-chaos powercut-tools bench bench-go lint lint-full fmt image release clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ## a chain of three IoT Edge devices under a cloud registry, in two minutes, on loopback
	@cd test && $(GO) build -o ../bin/demo ./demo && exec ../bin/demo

run: ## one registry on 127.0.0.1:5000; says how to pull from it and push to it; Ctrl-C ends it
	@cd test && $(GO) build -o ../bin/demo ./demo && exec ../bin/demo -run -listen $(LISTEN)

build: ## the binary, into bin/
	CGO_ENABLED=0 $(GO) build $(BUILDFLAGS) -o bin/connected-registry ./cmd/connected-registry

test: ## all tests that need nothing but Go, but for the faults (RACE=1 for the race detector)
	$(GO) test $(RACEFLAG) -timeout 20m $(TESTFLAGS) ./...
	cd test && $(GO) test $(RACEFLAG) -timeout 20m $(TESTFLAGS) $$($(GO) list ./... | grep -v -e /chaos -e /powercut)
	cd test/edgesim && $(GO) test $(RACEFLAG) -timeout 20m $(TESTFLAGS) ./...

test-interop: ## tests with real clients, which it installs (scripts/interop-setup: apt-get, root)
	scripts/interop-setup $(TOOLS)
	cd test && $(GO) test -count=1 -tags interop $(TESTFLAGS) $(INTEROP)
	cd test/edgesim && $(GO) test -count=1 -tags interop $(TESTFLAGS) ./...

test-interop-long: ## signatures by cosign, which takes minutes to build
	scripts/interop-setup $(TOOLS) cosign
	cd test && INTEROP=long $(GO) test -count=1 -tags interop $(TESTFLAGS) -run '^Test(Cosign|Anonymous)$$/./cosign' ./interop

test-chaos-short: powercut-tools ## the fault tests as CI runs them; as root the power cuts too
	cd test && $(GO) test -race -count=1 $(TESTFLAGS) ./chaos/...
	$(GO) test -count=1 -run "^TestOutboxOfTenThousand$$" $(TESTFLAGS) ./internal/store
	cd test && SIM_SEEDS=200 $(GO) test -count=1 -run '^TestSeeds$$' $(TESTFLAGS) ./sim # the race detector takes five times as long; make test has it
	cd test && $(GO) test -count=1 -run '^TestSizes$$' $(TESTFLAGS) ./chaos # what the race detector distorts
	cd test && POWERCUT=50 $(GO) test -count=1 -timeout 20m $(TESTFLAGS) ./powercut/...

test-chaos: ## the fault tests at length: larger layers, many rounds, a million events and operations of the store
	CHAOS=long $(GO) test -count=1 -timeout 1h $(TESTFLAGS) -run '^(TestThirtyDaysAway|TestBothDirections)$$' ./internal/syncer
	CHAOS=long $(GO) test -race -count=1 -timeout 8h $(TESTFLAGS) -run '^Test(Soak|Rot|PowerCut|FlippedBlobs|Churn)$$' ./internal/store
	CHAOS=long $(GO) test -race -count=1 -run 'Hostile|Cuts' $(TESTFLAGS) ./internal/syncer
	cd test && CHAOS=long $(GO) test -race -count=1 -timeout 4h $(TESTFLAGS) ./chaos/...
	cd test && SIM_SEEDS=5000 $(GO) test -count=1 -timeout 4h -run '^TestSeeds$$' $(TESTFLAGS) ./sim
	cd test && SIM_SEEDS=500 SIM_FROM=5001 $(GO) test -race -count=1 -timeout 4h $(TESTFLAGS) ./sim
	cd test && CHAOS=long $(GO) test -count=1 -timeout 4h $(TESTFLAGS) ./powercut/...

# What makes file systems to cut the power of, and watches their system calls.
powercut-tools:
	@for p in mkfs.ext4:e2fsprogs mkfs.xfs:xfsprogs strace:strace; do \
		PATH="$$PATH:/usr/sbin:/sbin" command -v $${p%%:*} >/dev/null || missing="$$missing $${p##*:}"; done; \
	if [ -n "$$missing" ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $$missing >/dev/null; fi

# BENCH=quick does less of everything; BENCHFLAGS="-json" prints JSON, "-only manifest,blob" some of it.
bench: powercut-tools ## figures beside distribution, olareg and regsync, in turns, as ratios (BENCH=quick for short)
	@cd test && $(GO) build -o ../bin/bench ./bench && exec ../bin/bench -mode $(BENCH) -tools $(TOOLS) $(BENCHFLAGS)

bench-go: ## the benchmarks of single packages
	$(GO) test -run '^$$' -bench . -benchmem $(TESTFLAGS) ./...
	cd test && $(GO) test -run '^$$' -bench . -benchmem $(TESTFLAGS) ./...

lint: $(GOFUMPT) $(STATICCHECK) ## format, vet, staticcheck and the rules of the house, in seconds
	@unformatted=$$($(TOOLS)/gofumpt -l $$(git ls-files '*.go' 2>/dev/null || find . -name '*.go')); \
		if [ -n "$$unformatted" ]; then echo "make fmt would change:"; echo "$$unformatted"; exit 1; fi
	$(GO) vet ./...
	cd test && $(GO) vet -tags interop ./...
	cd test/edgesim && $(GO) vet -tags interop ./...
	$(TOOLS)/staticcheck ./...
	cd test && $(TOOLS)/staticcheck -tags interop ./...
	cd test/edgesim && $(TOOLS)/staticcheck -tags interop ./...
	$(GO) test ./internal/archtest

lint-full: lint $(GOLANGCI) ## lint, and golangci-lint
	$(TOOLS)/golangci-lint run ./...
	cd test && $(TOOLS)/golangci-lint run --config ../.golangci.yml --build-tags interop ./...
	cd test/edgesim && $(TOOLS)/golangci-lint run --config ../../.golangci.yml --build-tags interop ./...

fmt: $(GOFUMPT) ## format all sources
	$(TOOLS)/gofumpt -w $$(git ls-files '*.go' 2>/dev/null || find . -name '*.go')

image: ## the container image for amd64, arm64 and arm/v7, as an OCI layout in dist/image; no Docker needed
	$(GO) run ./scripts/image -out dist/image -version $(VERSION) -revision "$(REVISION)"

release: ## image, binaries and checksums, into dist/
	rm -rf dist
	$(GO) run ./scripts/image -out dist/image -version $(VERSION) -revision "$(REVISION)" -binaries dist
	tar -C dist/image --sort=name --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX --mtime=@$(SOURCE_DATE_EPOCH) -cf dist/connected-registry-$(VERSION).oci.tar .
	cd dist && sha256sum connected-registry-* >SHA256SUMS && cat SHA256SUMS

clean: ## what was built
	rm -rf bin dist

$(GOFUMPT):
	GOBIN=$(TOOLS) $(GO) install mvdan.cc/gofumpt@$(GOFUMPT_VERSION) && touch $@
$(STATICCHECK):
	GOBIN=$(TOOLS) $(GO) install honnef.co/go/tools/cmd/staticcheck@$(STATICCHECK_VERSION) && touch $@
$(GOLANGCI):
	GOBIN=$(TOOLS) $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION) && touch $@

# SPDX-License-Identifier: Apache-2.0
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

export CGO_ENABLED := 0
# Where hack/deps puts Go on a machine that has none.
export PATH := $(PATH):$(shell hack/tool cache)/go/bin
BIN := bin
PREFIX ?= /usr/local
# Development builds too must parse as a version: kubelet reads it.
VERSION ?= $(shell git describe --tags --match 'v[0-9]*' --dirty 2>/dev/null || echo v0.0.0-dev+g$$(git rev-parse --short=12 HEAD 2>/dev/null || echo unknown))
LDFLAGS := -s -w -X main.version=$(VERSION)
PKGS := ./...
# Black-box packages bring up whole nodes; the others don't.
SLOW := ./e2e/...
RUNFLAG := $(if $(RUN),-run '$(RUN)')
FUZZTIME ?= 10s
COUNT ?= 50

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## bin/shim and bin/shim-keeper, static
	go build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/ ./cmd/...

.PHONY: install
install: build ## the binaries, manual pages, completion and the systemd unit below PREFIX (/usr/local); DESTDIR for packages
	install -D -t $(DESTDIR)$(PREFIX)/bin $(BIN)/shim $(BIN)/shim-keeper
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/man/man1 docs/man/*.1
	install -d $(DESTDIR)$(PREFIX)/share/bash-completion/completions $(DESTDIR)$(PREFIX)/lib/systemd/system
	$(BIN)/shim completion bash >$(DESTDIR)$(PREFIX)/share/bash-completion/completions/shim
	sed 's|/usr/local/bin|$(PREFIX)/bin|' dist/shim.service >$(DESTDIR)$(PREFIX)/lib/systemd/system/shim.service

.PHONY: demo
demo: deps ## a throw-away node, two pods, a log, an exec, http between them, clean up (root)
	@hack/demo/run

.PHONY: test
test: deps build fixtures ## all tests: unit, root and end to end; installs what is missing
	hack/test $(RUNFLAG) $(PKGS)

.PHONY: test-unit
test-unit: ## what needs no root
	hack/test -short $(RUNFLAG) $$(go list ./... | grep -v /e2e)

.PHONY: test-root
test-root: deps fixtures ## all but the end-to-end tests, root ones included
	@[[ $$EUID == 0 ]] || { echo "test-root: run as root" >&2; exit 1; }
	hack/test $(RUNFLAG) $$(go list ./... | grep -v /e2e)

.PHONY: e2e
e2e: deps build fixtures ## black-box tests through the socket (root); RUN=TestKubelet07 for some
	hack/test $(RUNFLAG) $(SLOW)

.PHONY: race
race: fixtures ## unit and root tests under the race detector
	hack/deps race
	CGO_ENABLED=1 hack/test -race $(RUNFLAG) $$(go list ./... | grep -v /e2e)

.PHONY: test-arm64
test-arm64: ## unit tests of the arm64 build under qemu-user
	hack/deps arm64
	GOARCH=arm64 hack/test -short -exec $(CURDIR)/hack/qemu-arm64 $(RUNFLAG) $$(hack/portable)

.PHONY: fuzz
fuzz: ## each fuzz target for FUZZTIME (10s)
	hack/fuzz $(FUZZTIME)

.PHONY: mutate
mutate: deps build ## drop each field of each CRI request: the test that docs/cri.md names must fail (root; minutes)
	go run ./hack/mutate -o docs/mutations.md

.PHONY: bench
bench: deps build ## time every RPC on a throw-away node; COUNT pods (50)
	hack/bench/run -n $(COUNT)

.PHONY: bench-compare
bench-compare: deps build ## the same beside containerd and runc, in turns, on one node; COUNT pods (50), ROUNDS (2) (root; 5 minutes)
	COUNT=$(COUNT) hack/bench/compare

.PHONY: bench-pull
bench-pull: deps build ## pull a large image with shim and with containerd, in turns (root; 5 minutes)
	hack/pullbench/run

.PHONY: critest
critest: deps build fixtures ## the CRI conformance suite against a throw-away node (root); FOCUS, SKIP, PARALLEL, ROUNDS
	hack/critest

.PHONY: kubelet-smoke
kubelet-smoke: deps build ## a standalone kubelet runs, restarts and logs a static pod (root; builds kubelet once, 6 min)
	hack/kubelet-smoke

.PHONY: vm-test
vm-test: deps ## cgroup v2, AppArmor and systemd in an emulated machine (root; makes it once; an hour); PARTS='unit keeper e2e critest systemd'
	hack/vm/test $(PARTS)

.PHONY: lint
lint: ## golangci-lint and the project's shape
	$$(hack/tool golangci-lint) run ./...
	go test -count=1 ./internal/archtest/

.PHONY: fmt
fmt: ## format the sources
	$$(hack/tool golangci-lint) fmt ./...

.PHONY: generate
generate: ## everything that is generated, again
	go generate ./...

.PHONY: verify
verify: fmt generate ## fail when formatting, generated files or modules are not as committed
	go mod verify
	for arch in amd64 arm64; do GOARCH=$$arch go vet ./...; done
	git diff --exit-code

.PHONY: cover
cover: deps build fixtures ## coverage of all tests, by package, into bin/cover.html
	hack/test -coverpkg=./... -coverprofile=$(BIN)/cover.out $(PKGS)
	go tool cover -func=$(BIN)/cover.out | tail -n 1
	go tool cover -html=$(BIN)/cover.out -o $(BIN)/cover.html

.PHONY: cross
cross: ## build and vet for arm64, tests included
	GOARCH=arm64 go build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/arm64/ ./cmd/...
	GOARCH=arm64 go vet ./...

.PHONY: nightly
nightly: verify lint cross test-arm64 race test ## everything long
	$(MAKE) fuzz FUZZTIME=60s
	CRISHIM_POWERCUT=all CRISHIM_SEEDS=5000 hack/test -run 'TestPowerCut|TestRandomImages' ./image ./snapshot/untar
	$(MAKE) critest ROUNDS=3
	$(MAKE) mutate
	SHIM_NIGHTLY=1 $(MAKE) e2e RUN=TestBrokenClients
	$(MAKE) kubelet-smoke
	$(MAKE) bench
	$(MAKE) vm-test

.PHONY: tools
tools: ## build crictl, critest and golangci-lint into the cache (SHIM_CACHE)
	@for t in crictl critest golangci-lint; do hack/tool $$t; done

.PHONY: crictl
crictl:
	@hack/tool crictl >/dev/null

.PHONY: fixtures
fixtures: crictl
	@for t in busybox critest cni-plugins; do hack/tool $$t >/dev/null; done
	@hack/tool debian >/dev/null || echo "fixtures: no Debian tree: the test on it will say so" >&2

.PHONY: deps
deps:
	@hack/deps

.PHONY: clean
clean: ## remove bin/
	rm -rf $(BIN)

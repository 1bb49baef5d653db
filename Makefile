# `make run` starts Sluice with two demo MCP servers; `make test` runs the tests. Both need Go alone.
.DEFAULT_GOAL := help

GO      ?= go
BIN     := bin
TOOLS   := $(GO) tool -modfile=tools/go.mod
LINT    := $(GO) tool -modfile=tools/lint.mod golangci-lint
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null)

.PHONY: help
help: ## Show the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: run
run: build ## Start both planes, one proxy and demo MCP servers, and show what to try
	$(BIN)/sluice up

.PHONY: build
build: ## Build bin/sluice, bin/sluice-controlplane and bin/sluice-proxy
	$(GO) build -trimpath -o $(BIN)/ ./cli/cmd/sluice ./controlplane/cmd/sluice-controlplane ./dataplane/cmd/sluice-proxy

.PHONY: test
test: ## Run the tests, with the race detector
	$(GO) test -race -timeout 15m ./...

.PHONY: check
check: build ## All that must hold beside the tests: vet, lint, generated code up to date
	$(GO) vet ./...
	$(LINT) run
	$(TOOLS) buf lint
	$(MAKE) generate
	@git diff --exit-code -- proto internal/resource/protos.binpb docs go.mod go.sum || { echo "generated code or modules differ from what is committed: commit the result of 'make generate'"; exit 1; }

.PHONY: generate
generate: ## Generate code from proto/ and the table of docs/policies.md, and tidy the module
	$(TOOLS) buf generate
	$(TOOLS) buf build --as-file-descriptor-set --exclude-imports --path proto/sluice/admin/v1/resource.proto --path proto/sluice/policy --path proto/sluice/test -o internal/resource/protos.binpb
	$(GO) mod tidy
	$(GO) test ./cli -count=1 -run '^TestKindsTable$$' -update

.PHONY: conformance
conformance: build ## The official MCP conformance suite through a proxy, compared with direct (needs npm)
	internal/systemtest/conformance/run.sh

.PHONY: interop
interop: build ## Real clients and servers through a proxy (needs npm, Python 3.10+ and Chromium)
	internal/systemtest/interop/run.sh

.PHONY: matrix
matrix: ## Clients × revisions × targets, also with two proxies and with one of them killed (needs npm, Python 3.10+)
	internal/systemtest/interop/matrix.sh

.PHONY: killtest
killtest: ## kill -9 the control plane under load, 200 times: no acknowledged apply may be lost
	SLUICE_KILLS=200 $(GO) test -count=1 -timeout 20m -run TestKill ./controlplane/killtest

.PHONY: fuzz
fuzz: ## Fuzz what strangers send, a minute each (FUZZTIME=1m)
	internal/systemtest/fuzz.sh

.PHONY: bench
bench: build ## Side by side with a peer; tells which variables it needs
	bench/run.sh

.PHONY: clean
clean: ## Remove what was built
	rm -rf $(BIN)

# Everything a developer runs. `make` alone prints the list.
SHELL       := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS   += --no-print-directory

VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
FUZZTIME ?= 20s
ROUNDS   ?= 3
LINT     := bin/golangci-lint

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  \033[1m%-8s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: ## See it run: private Postgres, sandbox, daemon and a small live workload; Ctrl-C ends it
	@go build -o bin/cdcsync ./cmd/cdcsync && exec bin/cdcsync demo # go run would call Ctrl-C a failure

.PHONY: test
test: ## Run every test, those against a real Postgres too (CDCSYNC_TEST_POSTGRES=local|docker|URL)
	@mkdir -p bin
	go test -count=1 -timeout 30m ./... 2>&1 | tee bin/test.log
	@grep '^ok' bin/test.log | grep -qv 'no tests to run' || { echo 'make test: no test ran' >&2; exit 1; }

.PHONY: race
race: ## Run the unit tests under the race detector (needs a C compiler)
	go test -race -timeout 30m ./cmd/... ./internal/...

.PHONY: lint
lint: $(LINT) ## Check style, import directions and formatting
	$(LINT) run ./...

.PHONY: fmt
fmt: $(LINT) ## Format the Go files
	$(LINT) fmt ./...

.PHONY: build
build: ## Build bin/cdcsync, static
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/cdcsync ./cmd/cdcsync

.PHONY: bench
bench: build ## Measure throughput and latency end to end, then the packages (docs/performance.md; ROUNDS=3)
	go run ./test/bench -daemon bin/cdcsync -rounds $(ROUNDS)
	go test -run '^$$' -bench . -benchmem ./internal/...

.PHONY: golden
golden: ## Write the golden files anew from what the code does now; read the diff before you commit it
	@grep -rlE 'flag\.Bool\("update"' --include='*_test.go' cmd internal test | xargs -r -n1 dirname | sort -u | while read -r dir; do \
		go test -count=1 "./$$dir" -update; \
	done

.PHONY: fuzz
fuzz: ## Run each fuzz target for FUZZTIME (20s)
	@grep -rlE '^func Fuzz' --include='*_test.go' cmd internal | xargs -r -n1 dirname | sort -u | while read -r dir; do \
		for target in $$(go test -list '^Fuzz' "./$$dir" | grep '^Fuzz'); do \
			echo "$$dir $$target"; \
			go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) "./$$dir"; \
		done; \
	done

.PHONY: clean
clean: ## Remove what was built
	rm -rf bin

# The first build takes some minutes; afterwards only a new version of the linter builds it again.
$(LINT): internal/tools/go.mod internal/tools/go.sum
	@mkdir -p bin
	cd internal/tools && go build -o ../../$(LINT) github.com/golangci/golangci-lint/v2/cmd/golangci-lint

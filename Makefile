# The two commands of the README are `make demo` and `make test`; the rest is for developers.
.DEFAULT_GOAL := help
SHELL := /bin/bash
CARGO ?= cargo
# Where `make bench` writes its tables and plots.
REPORT ?= target/report

.PHONY: help demo test unit system fuzz lint fmt deny doc bench image clean tools crds cluster cluster-down dockerfile

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: ## build, then run the bookstore mesh until Ctrl-C
	@tests/tools/install.sh demo
	$(CARGO) build --locked --bins
	@exec target/debug/oxmesh demo $(DEMO_ARGS)

test: ## install what the tests need, run everything, list what was skipped
	@tests/tools/install.sh test
	@tests/tools/test.sh

tools: ## install what tests and bench need (real Envoy, Python gRPC, …) under target/tools
	@tests/tools/install.sh test

lint: ## format, clippy, docs, licences
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings -A rustdoc::private-intra-doc-links" $(CARGO) doc --workspace --no-deps --locked --document-private-items
	@tests/tools/deny.sh

fuzz: ## each fuzz target for a bounded number of inputs
	CARGO_TARGET_DIR=target $(CARGO) test --locked --manifest-path tests/fuzz/Cargo.toml

bench: ## paired measurements against real Envoy (and nginx, HAProxy); report in $(REPORT)
	@tests/tools/install.sh bench
	$(CARGO) build --locked --release -p oxmesh-proxy -p oxmesh-bench
	target/release/oxmesh-bench run --report $(REPORT) $(BENCH_ARGS)

image: ## the images as archives under target/images, straight from the build
	@tests/tools/image.sh

crds: ## write the chart's custom resource definitions anew
	$(CARGO) run --locked -q -p oxmesh-controller -- --crds > charts/oxmesh/crds/oxmesh.yaml.new
	mv charts/oxmesh/crds/oxmesh.yaml.new charts/oxmesh/crds/oxmesh.yaml

dockerfile: ## the images of the Dockerfile, by docker, podman or buildah
	@tests/tools/dockerfile.sh

cluster: ## a real Kubernetes node with our images; leaves target/cluster/{kubectl,helm,exec,load}
	@tests/tools/install.sh cluster
	@PROFILE=$${PROFILE:-dev} tests/tools/image.sh test
	@tests/cluster/cluster.sh up
	@tests/cluster/cluster.sh images

cluster-down: ## remove it without a trace
	@tests/cluster/cluster.sh down

clean: ## remove build output
	$(CARGO) clean

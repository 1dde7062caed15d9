# What people and CI run. `make` alone prints this list.

.PHONY: help run test check fuzz bench release profile

# What is done often is what a release is optimised by: docs/decisions/0030-profile.md.
# Instead of RUSTFLAGS, which would be cut at blanks, and would be others' too.
RELEASED := CARGO_ENCODED_RUSTFLAGS="-Cprofile-use=$(CURDIR)/deploy/keyward.profdata"

help: ## print this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' Makefile

run: ## set up what is missing and start `keyward dev`: gRPC on 50051, public HTTP on 8080, ops on 9090
	@sh tests/setup run
	cargo build --locked
	@command -v grpcurl >/dev/null || echo 'grpcurl for the commands below:  export PATH="$(CURDIR)/target/test-tools/bin:$$PATH"'
	cargo run --locked --quiet -- dev --grpc 127.0.0.1:50051 --public 127.0.0.1:8080 --ops 127.0.0.1:9090

test: ## set up what is missing, the test tools included, and pass every test
	@sh tests/setup
	cargo test --locked

check: ## all that CI checks: format, lints, docs, tests, and a minute of fuzzing
	@sh tests/setup build
	cargo fmt --all --check
	cargo clippy --locked --all-targets -- -D warnings
	cargo clippy --locked --package keyward-fuzz -- --cfg fuzzing -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps
	$(MAKE) test
	fuzz/run smoke

fuzz: ## each fuzz target for a minute; SECS=600 for longer, TARGETS="claims grants" for some of them
	@sh tests/setup fuzz
	fuzz/run time $(or $(SECS),60) $(TARGETS)

bench: ## measure signing beside the token's own speed, and the JWKS beside nginx, in 10 minutes; FLAGS="--json FILE" keeps the figures
	@sh tests/setup bench
	@$(MAKE) --no-print-directory release
	KEYWARD_TEST_BINARY="$(CURDIR)/target/released/keyward" cargo bench --locked --bench signing -- $(FLAGS)

release: ## build the binary for production, target/released/keyward, in five minutes
	@sh tests/setup release
	$(RELEASED) cargo build --locked --release --package keyward --bin keyward --target-dir target
	install -D target/release/keyward target/released/keyward # where nothing else that cargo builds takes its place

profile: ## record anew what a release is optimised by, in a quarter of an hour: when the version is raised, after a new compiler or new crates
	@sh tests/setup profile
	deploy/record-profile

# `make demo` and `make test` are enough to start. Both install missing build tools first. The tests use real clients (scripts/clients).
# A client that cannot be installed is skipped, and the run prints the number of skipped clients at the end.
.PHONY: demo test soak build bench bootstrap ci

demo: bootstrap
	cargo run --release --locked -- demo

test: bootstrap
	@sh scripts/clients
	cargo test --locked --features rls
	@count=$$(wc -l < "$${OUTRIGGER_CLIENTS:-target/clients}/missing"); [ "$$count" -eq 0 ] || { echo "SKIPPED: $$count kinds of real clients or servers are missing:"; cat "$${OUTRIGGER_CLIENTS:-target/clients}/missing"; }

# Tests with production time settings; about an hour. SOAK_MINUTES=N sets the length of the longest test (default 30 minutes).
# SOAK_RELEASES=N sets the number of releases (default 20, about 17 minutes).
soak: bootstrap
	cargo test --locked --test soak -- --test-threads=1 --nocapture

build: bootstrap
	cargo build --release --locked

bench: bootstrap
	cargo bench --locked

bootstrap:
	@sh scripts/bootstrap

ci:
	bash .ci/run

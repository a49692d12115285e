# `make demo` and `make test` are all a newcomer needs; both set up what is missing first. The tests put real clients in front of the
# sidecar (scripts/clients); what cannot be installed is skipped, and counted at the end.
.PHONY: demo test soak build bench bootstrap ci

demo: bootstrap
	cargo run --release --locked -- demo

test: bootstrap
	@sh scripts/clients
	cargo test --locked --features rls
	@count=$$(wc -l < "$${OUTRIGGER_CLIENTS:-target/clients}/missing"); [ "$$count" -eq 0 ] || { echo "SKIPPED: $$count kinds of real clients or servers are missing:"; cat "$${OUTRIGGER_CLIENTS:-target/clients}/missing"; }

# Promises at their real clocks, about an hour; SOAK_MINUTES=N shortens the longest of 30, SOAK_RELEASES=N the 20 releases of about 17.
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

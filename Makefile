# `make demo` and `make test` are all a newcomer needs; both set up what is missing first.
.PHONY: demo test build bench bootstrap ci

demo: bootstrap
	cargo run --release --locked -- demo

test: bootstrap
	cargo test --locked

build: bootstrap
	cargo build --release --locked

bench: bootstrap
	cargo bench --locked

bootstrap:
	@sh scripts/bootstrap

ci:
	bash .ci/run

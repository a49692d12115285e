# syntax=docker/dockerfile:1
# Two stages. The final image has the binary and the default policy: no shell, no package manager, no root user.
FROM rust:1.95-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends cmake make && rm -rf /var/lib/apt/lists/*
WORKDIR /src
# Dependencies are built first, so that a change of the project's code does not rebuild them.
COPY Cargo.toml Cargo.lock ./
COPY .cargo .cargo
RUN mkdir -p src benches tests/integration && echo 'fn main() {}' > src/main.rs && touch src/lib.rs tests/integration/main.rs \
    && echo 'fn main() {}' | tee benches/decisions.rs > benches/overhead.rs \
    && cargo build --release --locked && rm -rf src
COPY src src
COPY policies policies
RUN touch src/main.rs src/lib.rs && cargo build --release --locked

FROM gcr.io/distroless/cc-debian12:nonroot
LABEL org.opencontainers.image.title="outrigger" \
      org.opencontainers.image.description="A per-service resilience sidecar" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0"
COPY --from=build /src/target/release/outrigger /outrigger
COPY policies/default.yaml /etc/outrigger/default.yaml
USER 65532:65532
EXPOSE 16001 16002 16090
HEALTHCHECK --interval=5s --timeout=2s --start-period=5s CMD ["/outrigger", "healthcheck"]
ENTRYPOINT ["/outrigger"]
CMD ["run", "--policies", "/etc/outrigger"]

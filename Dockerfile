# hookgate as one static file in an otherwise empty image.
#
#   docker build -t hookgate .          (or: podman build, buildah bud --format docker)
#   docker build --platform linux/arm64 -t hookgate .
#
# The health check is part of the image; engines that write the OCI format by default keep it only with `--format docker`.

FROM docker.io/library/rust:1.95-bookworm AS build

# The Rust target. Empty: that of the machine (or of the platform) that builds. Another one needs its linker as well.
ARG TARGET=

# The commit that is built, for the log and for hookgate_build_info: --build-arg COMMIT="$(git rev-parse --short=12 HEAD)".
ARG COMMIT=

WORKDIR /build
COPY . .

# A static glibc binary is what an empty image can run. The target is always named, so that the flag does not reach
# build scripts and macros, which cannot be static. Relocations are packed, which saves a third of a megabyte. The image's
# root is laid out here and copied whole.
RUN set -eu; \
    target="${TARGET:-$(uname -m)-unknown-linux-gnu}"; \
    if [ -n "$TARGET" ]; then rustup target add "$TARGET"; fi; \
    HOOKGATE_COMMIT="$COMMIT" RUSTFLAGS="-C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs" \
        cargo build --locked --release --bin hookgate --target "$target" --target-dir /build/target; \
    mkdir -p /image/etc/hookgate /image/etc/ssl/certs; \
    install -m 0755 "/build/target/$target/release/hookgate" /image/hookgate; \
    install -m 0644 /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ca-certificates.crt

FROM scratch

LABEL org.opencontainers.image.title="hookgate" \
      org.opencontainers.image.description="The verifying sidecar for Pulumi ESC webhooks" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"

# /hookgate, the CA roots for https upstreams, and the empty folder that the configuration is mounted into.
COPY --from=build /image /

# By number: there is no /etc/passwd to look a name up in, and Kubernetes' runAsNonRoot wants a number.
USER 65532:65532

# Deliveries; health and metrics.
EXPOSE 8080 9090

ENTRYPOINT ["/hookgate"]
CMD ["run"]

# Asks /readyz of the ops listener that the configuration names. There is no shell and no curl in here.
HEALTHCHECK --interval=10s --timeout=5s --start-period=5s --retries=3 CMD ["/hookgate", "healthcheck"]

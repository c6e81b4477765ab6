# One build, three small final images: `--target proxy`, `controller`, `init`.
# Other bases, for instance local ones, by build arguments: BUILDER needs Rust, a C compiler and make; BASE needs the C library
# and nothing else; INIT_BASE needs iptables (or Debian's package manager to install it).
ARG BUILDER=docker.io/library/rust:1-bookworm
ARG BASE=gcr.io/distroless/cc-debian12:nonroot
ARG INIT_BASE=docker.io/library/debian:bookworm-slim

FROM ${BUILDER} AS build
# `dev` builds faster and larger.
ARG PROFILE=release
WORKDIR /src
COPY . .
RUN cargo build --locked --profile "$PROFILE" --target-dir /build -p oxmesh-proxy -p oxmesh-controller -p oxmesh-iptables-init --bins \
 && mkdir /out && cp /build/*/oxmesh-proxy /build/*/oxmesh-controller /build/*/oxmesh-iptables-init /out/ && strip --strip-debug /out/*

FROM ${BASE} AS proxy
COPY --from=build /out/oxmesh-proxy /usr/local/bin/oxmesh-proxy
USER 1500:1500
ENTRYPOINT ["/usr/local/bin/oxmesh-proxy"]

FROM ${BASE} AS controller
COPY --from=build /out/oxmesh-controller /usr/local/bin/oxmesh-controller
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/oxmesh-controller"]

FROM ${INIT_BASE} AS init
RUN command -v iptables-restore || { apt-get update && apt-get install -y --no-install-recommends iptables && rm -rf /var/lib/apt/lists/*; }
COPY --from=build /out/oxmesh-iptables-init /usr/local/bin/oxmesh-iptables-init
ENTRYPOINT ["/usr/local/bin/oxmesh-iptables-init"]

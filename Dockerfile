# One build, four small final images: `--target proxy`, `controller`, `init`, `app` (docs/images.md).
# Other bases, for instance local ones, by build arguments: BUILDER needs Rust, a C compiler and make; BASE the C library and
# libgcc_s; INIT_BASE iptables, or Debian's package manager to install it.
ARG BUILDER=docker.io/library/rust:1-bookworm
ARG BASE=gcr.io/distroless/cc-debian12:nonroot
ARG INIT_BASE=docker.io/library/debian:bookworm-slim

FROM ${BUILDER} AS build
# `dev` builds faster and larger.
ARG PROFILE=release
WORKDIR /src
COPY . .
# Line tables, which the release profile keeps for profilers, are half of each program; names in backtraces stay.
# /state becomes the controller's state folder: its base has no shell to make one.
RUN cargo build --locked --profile "$PROFILE" --target-dir /build -p oxmesh-proxy -p oxmesh-controller -p oxmesh-iptables-init -p oxmesh --bins \
 && install -D -t /out /build/*/oxmesh-proxy /build/*/oxmesh-controller /build/*/oxmesh-iptables-init /build/*/oxmesh \
 && strip --strip-debug /out/* \
 && install -d /out/proxy \
 && mv /out/oxmesh-proxy /out/proxy/ \
 && ln -s oxmesh-proxy /out/proxy/envoy \
 && install -d -m 0700 -o 65532 -g 65532 /state/oxmesh \
 && rm -rf /build

FROM ${BASE} AS proxy
# oxmesh-proxy, and the link envoy, which is the command of OSM's injector.
COPY --from=build /out/proxy/ /usr/local/bin/
# The user whose traffic oxmesh-iptables-init lets pass.
USER 1500:1500
ENTRYPOINT ["/usr/local/bin/oxmesh-proxy"]

FROM ${BASE} AS controller
COPY --from=build /out/oxmesh-controller /usr/local/bin/oxmesh-controller
# A new volume mounted here takes its owner over.
COPY --from=build --chown=65532:65532 /state/ /var/lib/
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/oxmesh-controller"]

FROM ${INIT_BASE} AS init
RUN command -v iptables-restore \
 || { apt-get update && apt-get install -y --no-install-recommends iptables \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/log/*; }
COPY --from=build /out/oxmesh-iptables-init /usr/local/bin/oxmesh-iptables-init
# Programming the rules takes root with NET_ADMIN; it ends before the pod's programs start.
USER 0:0
ENTRYPOINT ["/usr/local/bin/oxmesh-iptables-init"]

# The demo's applications, for trying the mesh out; they stand in the program of the command line.
FROM ${BASE} AS app
COPY --from=build /out/oxmesh /usr/local/bin/oxmesh
USER 1000:1000
ENTRYPOINT ["/usr/local/bin/oxmesh"]

# One build, three small final images. `--build-arg BASE=…` and `BUILDER=…` choose other bases, for instance local ones.
ARG BUILDER=rust:1-bookworm
ARG BASE=gcr.io/distroless/cc-debian12:nonroot
ARG INIT_BASE=debian:bookworm-slim

FROM ${BUILDER} AS build
WORKDIR /src
COPY . .
RUN cargo build --locked --release -p oxmesh-proxy -p oxmesh-controller -p oxmesh-iptables-init --bins

FROM ${BASE} AS proxy
COPY --from=build /src/target/release/oxmesh-proxy /usr/local/bin/oxmesh-proxy
USER 1500
ENTRYPOINT ["/usr/local/bin/oxmesh-proxy"]

FROM ${BASE} AS controller
COPY --from=build /src/target/release/oxmesh-controller /usr/local/bin/oxmesh-controller
USER 65532
ENTRYPOINT ["/usr/local/bin/oxmesh-controller"]

FROM ${INIT_BASE} AS init
RUN apt-get update && apt-get install -y --no-install-recommends iptables && rm -rf /var/lib/apt/lists/*
COPY --from=build /src/target/release/oxmesh-iptables-init /usr/local/bin/oxmesh-iptables-init
ENTRYPOINT ["/usr/local/bin/oxmesh-iptables-init"]

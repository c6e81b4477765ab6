#!/bin/bash
# The images as archives under target/images, straight from the build: no builder, no base, no registry (docs/images.md). Those of
# the Dockerfile hold the same programs for the same users; tests/tools/dockerfile.sh builds those.
#   image.sh        proxy, controller, init, and app with the demo's applications
#   image.sh test   with the tests' applications and tools in app, and real Envoy where it is
# PROFILE: release (default), or dev, which builds faster and larger. REGISTRY and TAG name them; default oxmesh.test and our version.
set -euo pipefail
cd "$(dirname "$0")/../.."
profile=${PROFILE:-release} registry=${REGISTRY:-oxmesh.test}
tag=${TAG:-$(sed -nE 's/^version = "(.+)"$/\1/p' Cargo.toml | head -1)}
images=target/images bin=target/images/bin-$profile
target=${CARGO_TARGET_DIR:-target}/${profile/#dev/debug}
programs=(oxmesh-proxy oxmesh-controller oxmesh-iptables-init oxmesh)
packages=("${programs[@]/#/-p}")
# The same selection as tests/tools/test.sh builds: another could mean other features, and building again.
if [[ ${1:-} == test ]]; then packages=(--workspace); programs+=(oxmesh-test-app); fi
export PATH=$PATH:/usr/sbin:/sbin

echo "building (profile $profile)"
cargo build --quiet --locked --profile "$profile" "${packages[@]}" --bins
mkdir -p "$bin"
for p in "${programs[@]}"; do
  # Line tables, which the release profile keeps for profilers, are half of each program; names in backtraces stay.
  [[ $bin/$p -nt $target/$p ]] || strip --strip-debug -o "$bin/$p" "$target/$p"
done
archive() { # archive IMAGE ARGUMENT…
  local name=$1; shift
  tests/tools/oci.py "$registry/$name:$tag" "$images/$name.tar" "$@"
}

# `envoy` is the command of OSM's injector.
archive proxy --user 1500:1500 --entrypoint '["/usr/local/bin/oxmesh-proxy"]' \
  /usr/local/bin/oxmesh-proxy="$bin/oxmesh-proxy" /usr/local/bin/envoy@oxmesh-proxy
# Sidecars are pulled by every node.
size=$(stat -c %s "$images/proxy.tar") # its layer is compressed
printf 'proxy: %s bytes compressed, of at most 25000000\n' "$size"
[[ $size -le 25000000 || $profile != release ]] || { echo "the proxy image is too large" >&2; exit 1; }
archive controller --user 65532:65532 --entrypoint '["/usr/local/bin/oxmesh-controller"]' \
  /usr/local/bin/oxmesh-controller="$bin/oxmesh-controller" /var/lib/oxmesh/:65532

# iptables-nft as iptables, as Debian has it; the older one for nodes whose kernel lacks nf_tables, by PATH=/usr/sbin/legacy.
tables=()
for variant in nft legacy; do
  multi=$(command -v "xtables-$variant-multi") || { echo "the init image needs the package iptables: xtables-$variant-multi is not there" >&2; exit 1; }
  folder=/usr/sbin$([[ $variant == nft ]] || echo /legacy)
  tables+=("/usr/sbin/xtables-$variant-multi=$multi")
  for c in {ip,ip6}tables{,-save,-restore}; do tables+=("$folder/$c@/usr/sbin/xtables-$variant-multi"); done
done
# Extensions are loaded by name, so no list of libraries tells of them.
extensions=$(find /usr/lib -name 'libxt_owner.so' -printf '%h\n' | head -1)
archive init --user 0:0 --entrypoint '["/usr/local/bin/oxmesh-iptables-init"]' \
  /usr/local/bin/oxmesh-iptables-init="$bin/oxmesh-iptables-init" "${tables[@]}" "$extensions/=$extensions"

if [[ ${1:-} != test ]]; then
  archive app --user 1000:1000 --entrypoint '["/usr/local/bin/oxmesh"]' /usr/local/bin/oxmesh="$bin/oxmesh"
  exit
fi
busybox=$(command -v busybox) || { echo "the tests' image needs the package busybox" >&2; exit 1; }
applets=()
for a in sh cat sleep wget nc env ls id ps grep mkdir rm date head tail kill; do applets+=("/bin/$a@busybox"); done
archive app --user 1000:1000 --entrypoint '["/usr/local/bin/oxmesh-test-app"]' \
  /usr/local/bin/oxmesh="$bin/oxmesh" /usr/local/bin/oxmesh-test-app="$bin/oxmesh-test-app" \
  /usr/bin/curl="$(command -v curl)" /bin/busybox="$busybox" "${applets[@]}"
envoy=target/tools/bin/envoy
if [[ -x $envoy ]]; then
  tag=$("$envoy" --version | sed -nE 's|.*/([0-9]+\.[0-9]+\.[0-9]+)/.*|v\1|p')
  archive envoy --user 1500:1500 --entrypoint '["/usr/local/bin/envoy"]' /usr/local/bin/envoy="$envoy"
fi

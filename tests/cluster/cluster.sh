#!/bin/bash
# One real Kubernetes node for the tests, dual stack, in a network namespace of its own (docs/test-cluster.md). As root.
#   cluster.sh up          starts it, unless it runs; leaves target/cluster/{kubectl,helm,exec,load,kubeconfig}
#   cluster.sh down        removes it: processes, mounts, network namespace, cgroups, state
#   cluster.sh missing     says what it would need and isn't there; silent when nothing is
#   cluster.sh images      loads the archives of target/images that have changed since they were last loaded
#   cluster.sh restart P   stops the program P of the control plane (etcd, kube-apiserver, …) hard and starts it again
# Two live side by side with different OXMESH_CLUSTER (a name, here of /tmp/NAME and target/NAME) and OXMESH_CLUSTER_NET (10.NET.0.0/16).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd) checkout=$(cd "$(dirname "$0")/../.." && pwd)
tools=$checkout/target/tools/bin commands=$checkout/target/${OXMESH_CLUSTER:-cluster}
name=${OXMESH_CLUSTER:-oxmesh-cluster}
state=/tmp/$name # short: it holds Unix sockets, whose paths have 107 bytes
net=${OXMESH_CLUSTER_NET:-77}
host4=10.$net.0.1 node4=10.$net.0.2 host6=fd$net::1 node6=fd$net::2
pods4=10.$net.64.0/18 pods6=fd$net:1::/64 services4=10.$net.128.0/18 services6=fd$net:2::/112
api_service=10.$net.128.1 dns=10.$net.128.10
export PATH=$PATH:/usr/sbin:/sbin

die() { echo "$*" >&2; exit 1; }
# `ip netns exec` would hide the cgroup mounts from the kubelet.
inside() { nsenter --net="/run/netns/$name" "$@"; }
kubectl() { "$tools/kubectl" --kubeconfig "$state/admin.kubeconfig" "$@"; }
ctr() { command ctr -a "$state/containerd.sock" -n k8s.io "$@"; }

missing() {
  [[ $(id -u) == 0 ]] || { echo "needs root (containers, network namespaces and iptables)"; return; }
  local c
  for c in containerd runc ip:iproute2 iptables nsenter:util-linux setsid:util-linux openssl curl busybox strip:binutils; do
    command -v "${c%:*}" > /dev/null || { echo "the package ${c#*:} is not installed"; return; }
  done
  [[ -x /usr/lib/cni/bridge ]] || { echo "the package containernetworking-plugins is not installed"; return; }
  for c in kubernetes etcd coredns helm; do
    [[ -x $tools/$c ]] || { echo "$c is not built (tests/cluster/tools.sh builds it)"; return; }
  done
}

# One run at a time starts or stops clusters; the folder itself is the lock, so none stays behind.
alone() {
  exec 9< /tmp
  flock -w 300 9 || die "another run has been starting or stopping a test cluster for five minutes"
}

# -- programs
running() { # running PROGRAM: whether what its pid file names is still that program
  local pid
  pid=$(cat "$state/pid/$1" 2> /dev/null) && [[ $(readlink "/proc/$pid/cwd") == "$state/pki" ]]
}
start() { # start PROGRAM COMMAND…, remembered for `restart`
  local program=$1; shift
  printf '%q ' "$@" > "$state/run/$program"
  launch "$program"
}
launch() {
  local program=$1 words
  eval "words=($(< "$state/run/$program"))"
  cd "$state/pki" # by which `running` knows its own
  setsid nsenter --net="/run/netns/$name" "${words[@]}" >> "$state/log/$program" 2>&1 < /dev/null 9>&- &
  echo $! > "$state/pid/$program"
}
wait_for() { # wait_for PROGRAM COMMAND…: until it succeeds, within a minute
  local program=$1 end=$((SECONDS + 60)); shift
  until "$@" > /dev/null 2>&1; do
    running "$program" || { tail -5 "$state/log/$program" >&2; die "$program has ended; its log is $state/log/$program"; }
    [[ $SECONDS -lt $end ]] || { tail -5 "$state/log/$program" >&2; die "$program did not come up in a minute; its log is $state/log/$program"; }
    sleep 0.1
  done
}

# -- up, in the order of its steps
network() {
  [[ -z $(ip route show to match "$host4" | grep -v ^default) ]] || die "10.$net.0.0/16 is in use on this machine: choose another number with OXMESH_CLUSTER_NET"
  ip netns add "$name"
  # The node's one interface; its other end lets this machine's programs reach node, pods and services.
  ip link add "oxmesh$net" type veth peer name node0 netns "$name"
  ip address add "$host4/24" dev "oxmesh$net"
  ip link set "oxmesh$net" up
  inside ip link set lo up
  inside ip address add "$node4/24" dev node0
  inside ip link set node0 up
  ip route add "$pods4" via "$node4"; ip route add "$services4" via "$node4"
  inside ip route add default dev node0
  ip -6 address add "$host6/64" dev "oxmesh$net" nodad
  inside ip -6 address add "$node6/64" dev node0 nodad
  ip -6 route add "$pods6" via "$node6"; ip -6 route add "$services6" via "$node6"
  inside ip -6 route add default dev node0
  inside sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
}

certificate() { # certificate NAME COMMON-NAME EXTENSION, signed by ca
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$2" -keyout "$1.key" -out "$1.csr" 2> /dev/null
  openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -out "$1.crt" -extfile <(echo "$3") 2> /dev/null
}
credentials() {
  cd "$state/pki"
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj "/CN=$name" -keyout ca.key -out ca.crt 2> /dev/null
  certificate api kube-apiserver "subjectAltName=DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:localhost,IP:127.0.0.1,IP:$node4,IP:$node6,IP:$api_service"
  certificate front-proxy front-proxy extendedKeyUsage=clientAuth
  certificate kubelet-client kube-apiserver extendedKeyUsage=clientAuth
  openssl genrsa -out accounts.key 2048 2> /dev/null
  local who token line
  : > tokens.csv
  for line in admin,admin,system:masters controllers,system:kube-controller-manager, scheduler,system:kube-scheduler, kubelet,system:node:node-1,system:nodes proxy,system:kube-proxy, dns,system:dns,; do
    IFS=, read -r who user group <<< "$line"
    token=$(openssl rand -hex 16)
    echo "$token,$user,$who,$group" >> tokens.csv
    cat > "$state/$who.kubeconfig" <<K
apiVersion: v1
kind: Config
clusters: [{name: $name, cluster: {server: "https://$node4:6443", certificate-authority-data: $(base64 -w0 ca.crt)}}]
users: [{name: $who, user: {token: $token}}]
contexts: [{name: $name, context: {cluster: $name, user: $who}}]
current-context: $name
K
  done
  chmod 0600 tokens.csv ./*.key "$state"/*.kubeconfig
}

control_plane() {
  start etcd "$tools/etcd" --data-dir "$state/etcd" --unsafe-no-fsync --log-level error
  wait_for etcd inside curl -fsS http://127.0.0.1:2379/health
  start kube-apiserver "$tools/kube-apiserver" --etcd-servers=http://127.0.0.1:2379 --advertise-address="$node4" --allow-privileged \
    --authorization-mode=Node,RBAC --anonymous-auth=false --token-auth-file=tokens.csv --client-ca-file=ca.crt \
    --tls-cert-file=api.crt --tls-private-key-file=api.key --service-cluster-ip-range="$services4,$services6" \
    --service-account-issuer=https://kubernetes.default.svc --service-account-key-file=accounts.key --service-account-signing-key-file=accounts.key \
    --kubelet-preferred-address-types=InternalIP --kubelet-client-certificate=kubelet-client.crt --kubelet-client-key=kubelet-client.key \
    --requestheader-client-ca-file=ca.crt --requestheader-allowed-names=front-proxy --requestheader-username-headers=X-Remote-User \
    --requestheader-group-headers=X-Remote-Group --requestheader-extra-headers-prefix=X-Remote-Extra- \
    --proxy-client-cert-file=front-proxy.crt --proxy-client-key-file=front-proxy.key
  containers # meanwhile
  wait_for kube-apiserver kubectl get --raw /readyz
  local c=$state/controllers.kubeconfig s=$state/scheduler.kubeconfig
  start kube-controller-manager "$tools/kube-controller-manager" --leader-elect=false --use-service-account-credentials \
    --kubeconfig="$c" --authentication-kubeconfig="$c" --authorization-kubeconfig="$c" --root-ca-file=ca.crt \
    --service-account-private-key-file=accounts.key --cluster-signing-cert-file=ca.crt --cluster-signing-key-file=ca.key
  start kube-scheduler "$tools/kube-scheduler" --leader-elect=false --kubeconfig="$s" --authentication-kubeconfig="$s" --authorization-kubeconfig="$s"
}

containers() {
  # restrict_oom_score_adj: without CAP_SYS_RESOURCE runc could not lower a pod's score, and no pod would start.
  # netns_mounts_under_state_dir: else pods' network namespaces stay behind in /run/netns.
  cat > "$state/containerd.toml" <<C
version = 2
root = "$state/containerd"
state = "$state/containerd-run"
[grpc]
address = "$state/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "oxmesh.test/pause:1"
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "$state/cni"
[plugins."io.containerd.internal.v1.opt"]
path = "$state/opt"
C
  cat > "$state/cni/pods.conflist" <<C
{"cniVersion": "0.4.0", "name": "pods", "plugins": [
  {"type": "bridge", "bridge": "pods0", "isGateway": true, "hairpinMode": true, "ipam": {"type": "host-local", "dataDir": "$state/ipam",
   "ranges": [[{"subnet": "$pods4"}], [{"subnet": "$pods6"}]], "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
C
  start containerd "$(command -v containerd)" --config "$state/containerd.toml"
  wait_for containerd ctr version
  "$checkout/tests/tools/oci.py" oxmesh.test/pause:1 "$state/pause.tar" --entrypoint '["/bin/busybox", "sleep", "2147483647"]' /bin/busybox="$(command -v busybox)" > /dev/null
  ctr images import "$state/pause.tar" > /dev/null
}

cgroups() { # the folders in which all of the cluster's pods live: one, or with version 1 one for each controller
  awk -v n="$name" '$3 == "cgroup" || $3 == "cgroup2" {print $2 "/" n}' /proc/mounts
}

node() {
  local folder
  for folder in $(cgroups); do mkdir -p "$folder"; done
  # Version 2 hands a controller down only where told to.
  if [[ -f /sys/fs/cgroup/cgroup.controllers ]]; then sed 's/\</+/g' /sys/fs/cgroup/cgroup.controllers > /sys/fs/cgroup/cgroup.subtree_control; fi
  # cpuset groups of version 1 begin empty, and nothing can run in them.
  if [[ -d /sys/fs/cgroup/cpuset/$name ]]; then
    for folder in cpus mems; do cat "/sys/fs/cgroup/cpuset/cpuset.$folder" > "/sys/fs/cgroup/cpuset/$name/cpuset.$folder"; done
  fi
  # The kubelet sets these for the whole machine; `down` puts them back.
  sysctl vm.overcommit_memory kernel.panic kernel.panic_on_oops kernel.keys.root_maxkeys kernel.keys.root_maxbytes > "$state/sysctl" 2> /dev/null || true
  cat > "$state/kubelet.yaml" <<K
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: $node4
authentication: {anonymous: {enabled: false}, webhook: {enabled: false}, x509: {clientCAFile: $state/pki/ca.crt}}
authorization: {mode: AlwaysAllow}
cgroupDriver: cgroupfs
cgroupRoot: /$name
failSwapOn: false
resolvConf: ""
clusterDomain: cluster.local
clusterDNS: [$dns]
containerRuntimeEndpoint: unix://$state/containerd.sock
evictionHard: {memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1%}
imageGCHighThresholdPercent: 100
maxPods: 250
registryPullQPS: 0
podLogsDir: $state/pod-logs
K
  start kubelet "$tools/kubelet" --config="$state/kubelet.yaml" --kubeconfig="$state/kubelet.kubeconfig" --hostname-override=node-1 \
    --node-ip="$node4,$node6" --root-dir="$state/kubelet" --cert-dir="$state/kubelet/pki"
  # The connection table's limits belong to the whole machine: zero leaves them alone.
  start kube-proxy "$tools/kube-proxy" --kubeconfig="$state/proxy.kubeconfig" --hostname-override=node-1 --cluster-cidr="$pods4,$pods6" --proxy-mode=iptables \
    --conntrack-max-per-core=0 --conntrack-tcp-timeout-established=0 --conntrack-tcp-timeout-close-wait=0
}

names() {
  touch "$state/hosts" # names of the world outside the cluster, for tests of egress: ADDRESS NAME…
  cat > "$state/Corefile" <<C
. {
  bind $node4
  errors
  cache 2
  kubernetes cluster.local in-addr.arpa ip6.arpa {
    kubeconfig $state/dns.kubeconfig
    ttl 1
  }
  hosts $state/hosts {
    ttl 1
    reload 1s
    fallthrough
  }
  # Left to itself, the part above calls an unknown name a failure of the server, which clients ask again.
  template ANY ANY {
    rcode NXDOMAIN
  }
}
C
  kubectl apply -f - > /dev/null <<K
{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, metadata: {name: "system:dns"}, rules: [
  {apiGroups: [""], resources: [services, namespaces, pods], verbs: [list, watch]},
  {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, watch]}]}
---
{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, metadata: {name: "system:dns"},
 roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: "system:dns"}, subjects: [{kind: User, name: "system:dns"}]}
---
{apiVersion: v1, kind: Service, metadata: {name: kube-dns, namespace: kube-system},
 spec: {clusterIP: $dns, ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53, protocol: TCP}]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: kube-dns, namespace: kube-system, labels: {kubernetes.io/service-name: kube-dns}},
 addressType: IPv4, endpoints: [{addresses: [$node4]}], ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53, protocol: TCP}]}
K
  start coredns "$tools/coredns" -conf "$state/Corefile"
}

ready() { kubectl get node node-1 --no-headers | grep -qw Ready && kubectl get serviceaccount default; }

leave_commands() {
  mkdir -p "$commands" "$state/bin"
  local c="$state/admin.kubeconfig"
  # Under the state folder, so that they also work for those who know the cluster but not this checkout.
  printf '#!/bin/sh\nexec %q --kubeconfig %q "$@"\n' "$tools/kubectl" "$c" > "$state/bin/kubectl"
  printf '#!/bin/sh\nexec %q --kubeconfig %q "$@"\n' "$tools/helm" "$c" > "$state/bin/helm"
  printf '#!/bin/sh\nexec nsenter --net=/run/netns/%s "$@"\n' "$name" > "$state/bin/exec"
  printf '#!/bin/sh\nfor image; do %q -a %q -n k8s.io images import "$image" || exit; done\n' "$(command -v ctr)" "$state/containerd.sock" > "$state/bin/load"
  chmod 755 "$state"/bin/*
  for c in kubectl helm exec load; do ln -sfn "$state/bin/$c" "$commands/$c"; done
  ln -sfn "$state/admin.kubeconfig" "$commands/kubeconfig"
}

up() {
  local why owner
  why=$(missing)
  [[ -z $why ]] || die "no test cluster: $why"
  alone
  if [[ -e $state ]]; then
    owner=$(cat "$state/owner" 2> /dev/null || true)
    if running kube-apiserver && running kubelet && ready > /dev/null 2>&1; then
      [[ $owner == "$checkout" ]] || die "$name runs already, for the checkout $owner: stop it there (make cluster-down), or set OXMESH_CLUSTER and OXMESH_CLUSTER_NET here, or use it with KUBECONFIG=$state/admin.kubeconfig"
      leave_commands
      echo "$name runs already"
      return
    fi
    [[ -n $owner ]] || die "$state is not a test cluster's: move it away"
    remove # what a killed run has left
  fi
  mkdir -m 0755 "$state"
  mkdir "$state"/{log,loaded,pid,run,pki,cni,kubelet}
  echo "$checkout" > "$state/owner"
  trap 'remove' ERR EXIT
  network
  credentials
  control_plane
  node
  names
  wait_for kubelet ready
  leave_commands
  trap - ERR EXIT
  echo "$name is ready after $SECONDS s"
}

# -- down
remove() {
  local program folder pid mount link
  for program in kubelet kube-controller-manager kube-scheduler kube-proxy coredns kube-apiserver etcd; do
    if running "$program"; then kill -9 "$(cat "$state/pid/$program")"; fi
  done
  # Pods' processes are those in the cluster's cgroups, whatever they are called.
  for folder in $(cgroups); do
    [[ -d $folder ]] || continue
    find "$folder" -name cgroup.procs -exec cat {} + 2> /dev/null
  done | sort -u | xargs -r kill -9 2> /dev/null || true
  if running containerd; then kill -9 "$(cat "$state/pid/containerd")"; fi
  # Each shim's folder is below the state folder.
  for pid in /proc/[0-9]*; do
    link=$(readlink "$pid/cwd" 2> /dev/null) || continue
    if [[ $link == "$state"/* ]]; then kill -9 "${pid#/proc/}" 2> /dev/null || true; fi
  done
  awk -v s="$state/" 'index($2, s) == 1 {print $2}' /proc/mounts | sort -r | while read -r mount; do umount -l "$mount" || true; done
  ip netns delete "$name" 2> /dev/null || true
  ip link delete "oxmesh$net" 2> /dev/null || true
  local end=$((SECONDS + 10))
  for folder in $(cgroups); do
    until [[ ! -d $folder ]]; do # killed processes take a moment to leave
      find "$folder" -depth -type d -exec rmdir {} + 2> /dev/null || true
      [[ $SECONDS -lt $end ]] || { echo "could not remove $folder" >&2; break; }
    done
  done
  if [[ -s $state/sysctl ]]; then sysctl -qp "$state/sysctl" 2> /dev/null || true; fi
  rm -rf --one-file-system "$state"
  rm -rf "$commands"
}

down() {
  alone
  [[ -e $state ]] || { echo "$name does not run"; return; }
  local owner; owner=$(cat "$state/owner" 2> /dev/null || true)
  [[ $owner == "$checkout" || ! -d $owner ]] || die "$name belongs to the checkout $owner: stop it there"
  remove
  echo "$name is gone"
}

# A killed program holds its ports until its last thread has ended, which may be long after the first.
gone() { # gone PID: no thread is left, or one that has ended and is not waited for
  local threads
  threads=$(find "/proc/$1/task" -mindepth 1 -maxdepth 1 2> /dev/null | wc -l)
  [[ $threads == 0 ]] || { [[ $threads == 1 ]] && grep -q '^State:.Z' "/proc/$1/status" 2> /dev/null; }
}
restart() {
  local program=${1:?which program} pid
  running "$program" || die "$program does not run in $name"
  pid=$(cat "$state/pid/$program")
  kill -9 "$pid"
  until gone "$pid"; do sleep 0.05; done
  launch "$program"
}

images() {
  local archive
  for archive in "$checkout"/target/images/*.tar; do
    [[ "$state/loaded/${archive##*/}" -nt $archive ]] && continue
    ctr images import "$archive" > /dev/null
    touch "$state/loaded/${archive##*/}"
  done
}

case ${1:-} in
  up | down | missing | images) "$1" ;;
  restart) restart "${2:-}" ;;
  *) sed -n '2,8s/^# \?//p' "$0" >&2; exit 64 ;;
esac

#!/bin/bash
# The four images of the Dockerfile (docs/images.md).
#   dockerfile.sh        builds oxmesh/proxy, oxmesh/controller, oxmesh/init, oxmesh/app with docker, podman or buildah; BUILDER, BASE, INIT_BASE
#                   and PROFILE in the environment become build arguments (see the Dockerfile)
#   dockerfile.sh check  proves the Dockerfile where no registry is reachable: makes local bases from Debian packages, builds from
#                   them, starts each program in its image, prints sizes, removes everything
set -euo pipefail
cd "$(dirname "$0")/../.."
targets=(proxy controller init app)

die() { echo "$*" >&2; exit 1; }

build() {
  local tool arguments=()
  if docker info > /dev/null 2>&1; then tool=(docker build)
  elif command -v podman > /dev/null; then tool=(podman build)
  elif command -v buildah > /dev/null; then tool=(buildah build --layers)
  else die "no Docker engine answers, and neither podman nor buildah is there: apt-get install buildah"
  fi
  for name in BUILDER BASE INIT_BASE PROFILE; do
    if [[ -n ${!name:-} ]]; then arguments+=(--build-arg "$name=${!name}"); fi
  done
  for t in "${targets[@]}"; do "${tool[@]}" "${arguments[@]}" --target "$t" -t "oxmesh/$t" .; done
}

# -- check: everything is under $work, which is made before and removed after
need() {
  [[ $(id -u) == 0 ]] || die "dockerfile.sh check needs root: it unpacks root file systems and makes network namespaces"
  local missing=()
  for c in buildah debootstrap ip:iproute2 iptables-save:iptables curl dpkg-deb:dpkg; do
    command -v "${c%:*}" > /dev/null || missing+=("${c#*:}")
  done
  [[ ${#missing[@]} == 0 ]] || die "missing packages; install them and try again: apt-get install ${missing[*]}"
  sysroot=$(rustc --print sysroot)
  [[ -x $sysroot/bin/cargo && $sysroot != /usr ]] || die "the build borrows this machine's Rust toolchain, which must be one of rustup's"
}

b() { buildah --root "$work/storage" --runroot "$work/run" "$@"; }

import() { # import NAME ROOTFS [CONFIG-OPTION…]: an image of one layer
  local name=$1 rootfs=$2 c; shift 2
  c=$(b from scratch)
  b add --quiet "$c" "$rootfs" / > /dev/null
  [[ $# == 0 ]] || b config "$@" "$c"
  b commit --quiet --rm "$c" "$name" > /dev/null
}

# Like gcr.io/distroless/cc: a C library, its helpers, certificates, two users; no shell, no package manager.
make_base() {
  local root=$work/base
  mkdir -p "$work/debs" "$root/etc/ssl/certs" "$root/tmp"
  (cd "$work/debs" && apt-get -qq -o APT::Sandbox::User=root download libc6 libgcc-s1 ca-certificates)
  for deb in "$work"/debs/*.deb; do dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$root" --exclude='./usr/sbin' --exclude='./usr/share/doc' --exclude='./usr/share/lintian'; done
  find "$root/usr/share/ca-certificates" -name '*.crt' -exec cat {} + > "$root/etc/ssl/certs/ca-certificates.crt"
  chmod 1777 "$root/tmp"
  printf 'root:x:0:0:root:/root:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin\n' > "$root/etc/passwd"
  printf 'root:x:0:\nnonroot:x:65532:\n' > "$root/etc/group"
  import localhost/base "$root" --user 65532
}

# Like debian:bookworm-slim, and from it a builder to which the toolchain is lent with --volume.
make_debian() {
  local c
  debootstrap --variant=minbase "$(. /etc/os-release && echo "$VERSION_CODENAME")" "$work/debian" http://deb.debian.org/debian > "$work/debootstrap.log" \
    || die "debootstrap failed: $(tail -3 "$work/debootstrap.log")"
  rm -rf "$work"/debian/var/lib/apt/lists/* "$work"/debian/var/cache/apt/*.bin "$work"/debian/var/cache/apt/archives/*.deb "$work"/debian/usr/share/{doc,man,locale}/*
  import localhost/debian "$work/debian" --cmd bash
  rm -rf --one-file-system "$work/debian"
  c=$(b from localhost/debian)
  b run --isolation chroot "$c" -- sh -c 'apt-get -qq update && apt-get -qq install -y --no-install-recommends gcc libc6-dev make && apt-get clean' > "$work/apt.log" 2>&1 \
    || die "could not install a C compiler: $(tail -3 "$work/apt.log")"
  b config --env PATH=/usr/local/rust/bin:/usr/sbin:/usr/bin:/sbin:/bin --env CARGO_HOME=/usr/local/cargo --env CARGO_NET_OFFLINE=true "$c"
  b commit --quiet --rm "$c" localhost/builder > /dev/null
}

check() {
  need
  work=$(mktemp -d /var/tmp/oxmesh-image.XXXXXX)
  export work TMPDIR=$work
  trap 'b rm --all > /dev/null 2>&1; rm -rf --one-file-system "$work"' EXIT
  echo "== bases"
  make_base
  make_debian
  echo "== build"
  cargo fetch --quiet --locked
  mkdir "$work/src" # a copy: a file saved meanwhile would make the next target build everything again
  git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t "$work/src"
  for t in "${targets[@]}"; do
    b build --layers --isolation chroot --target "$t" -t "localhost/$t" \
      --build-arg BUILDER=localhost/builder --build-arg BASE=localhost/base --build-arg INIT_BASE=localhost/debian --build-arg "PROFILE=${PROFILE:-release}" \
      --volume "$sysroot:/usr/local/rust:ro" --volume "${CARGO_HOME:-$HOME/.cargo}/registry:/usr/local/cargo/registry:ro" \
      "$work/src" > "$work/build.log" 2>&1 || { tail -40 "$work/build.log" >&2; die "the image $t could not be built"; }
  done
  unshare --net -- "$0" prove
  echo "== compressed sizes"
  for i in base debian "${targets[@]}"; do
    b push --quiet "localhost/$i" "oci:$work/oci-$i"
    printf '%-12s%6.1f MB\n' "$i" "$(du -sb "$work/oci-$i/blobs" | awk '{print $1 / 1e6}')"
  done
  [[ $(du -sb "$work/oci-proxy/blobs" | cut -f1) -le 25000000 || ${PROFILE:-release} != release ]] || die "FAILED: the proxy image is larger than 25 MB"
}

# -- in a network namespace of its own, with the images built
expect() { # expect WHAT WANTED GOT
  [[ $2 == "$3" ]] || die "FAILED: $1: wanted $2, got $3"
  echo "ok: $1: $3"
}

eventually() { # eventually WHAT COMMAND…, within ten seconds
  local what=$1 end=$((SECONDS + 10)); shift
  until "$@" > /dev/null 2>&1; do
    [[ $SECONDS -lt $end ]] || { cat "$work"/*.out >&2; die "FAILED: $what did not come to pass in 10 seconds"; }
    sleep 0.1
  done
}

added() { # added IMAGE BASE: the files an image has beyond its base
  local c m
  for i in "$1" "$2"; do
    c=$(b from "localhost/$i"); m=$(b mount "$c")
    (cd "$m" && find . -type f -printf '%P\n' -o -type d -empty -printf '%P/\n' | sort) > "$work/files.$i"
  done
  comm -23 "$work/files.$1" "$work/files.$2" | paste -sd' '
}

serve() { # serve IMAGE OPTION… -- ARGUMENT…: in the background, as the image's user; its process into $pid
  local image=$1 c options=(); shift
  while [[ $1 != -- ]]; do options+=("$1"); shift; done
  shift
  c=$(b from "localhost/$image")
  mount=$(b mount "$c")
  b run --isolation chroot "${options[@]}" "$c" -- "/usr/local/bin/oxmesh-$image" "$@" > "$work/$image.out" 2>&1 &
  eventually "a process of the image $image" pgrep -f "^/usr/local/bin/oxmesh-$image .*$work"
  pid=$(pgrep -f "^/usr/local/bin/oxmesh-$image .*$work")
}

stop() { # stop NAME: what serve started
  local rc=0
  kill "$pid"
  pid=
  wait "$!" || rc=$?
  expect "$1, asked to end, ends with" 0 "$rc"
}

ids() { awk '/^(Uid|Gid|Groups):/ {printf "%s ", $2}' "/proc/$1/status" | sed 's/ *$//'; }

prove() {
  trap '[[ -z ${pid:-} ]] || kill "$pid"' EXIT
  ip link set lo up
  local version c program out
  version="$(cargo metadata --no-deps --offline --format-version 1 | grep -oE '"name":"oxmesh-proxy","version":"[^"]+"' | cut -d'"' -f8)"
  for i in proxy controller iptables-init; do
    c=$(b from "localhost/${i#iptables-}")
    program=$(b inspect --format '{{index .OCIv1.Config.Entrypoint 0}}' "$c")
    out=$(b run --isolation chroot "$c" -- "$program" --version) || die "FAILED: $i in its image: status $?"
    expect "$i starts by the image's entry point" "oxmesh-$i $version" "$out"
  done
  expect "beyond its base, proxy holds" usr/local/bin/oxmesh-proxy "$(added proxy base)"
  expect "beyond its base, controller holds" "usr/local/bin/oxmesh-controller var/lib/oxmesh/" "$(added controller base)"

  c=$(b from localhost/app)
  expect "app starts by the image's entry point" "oxmesh $version" "$(b run --isolation chroot "$c" -- /usr/local/bin/oxmesh --version)"
  expect "the demo's command is found in app" "Run one of the bookstore's applications" "$(b run --isolation chroot "$c" -- oxmesh app --help | head -1)"
  expect "beyond its base, app holds" usr/local/bin/oxmesh "$(added app base)"

  mkdir "$work/etc"
  cp -r demo "$work/etc/"
  echo 'admin: {address: {socket_address: {address: 127.0.0.1, port_value: 15000}}}' > "$work/etc/bootstrap.yaml"
  chmod -R a+rX "$work/etc"; chmod a+x "$work"
  serve proxy -v "$work/etc:$work/etc:ro" -- -c "$work/etc/bootstrap.yaml"
  eventually "proxy ready" curl -fsS http://127.0.0.1:15000/ready
  expect "proxy runs as user, group, further groups" "1500 1500 1500" "$(ids "$pid")"
  stop proxy

  serve controller -v "$work/etc:$work/etc:ro" -- --folder "$work/etc/demo"
  eventually "controller alive" curl -fsS http://127.0.0.1:9091/health/alive
  expect "controller runs as user, group, further groups" "65532 65532 65532" "$(ids "$pid")"
  expect "controller's state belongs to" 65532 "$(find "$mount/var/lib/oxmesh" -type f -printf '%U\n' | sort -u)"
  stop controller

  c=$(b from localhost/init)
  local rc=0
  b run --isolation chroot "$c" -- /usr/local/bin/oxmesh-iptables-init > "$work/init.out" 2>&1 || rc=$?
  expect "init without NET_ADMIN fails with" 1 "$rc"
  expect "and leaves rules" 0 "$(iptables-save -t nat | grep -c '^-A' || true)"
  b run --isolation chroot --cap-add CAP_NET_ADMIN,CAP_NET_RAW "$c" -- /usr/local/bin/oxmesh-iptables-init | tee "$work/init.out"
  for v in 4 6; do
    expect "rules of IPv$v in force" "$(sed -nE "s/^IPv$v: ([1-9][0-9]*) rules in force$/\1/p" "$work/init.out")" "$("ip${v/4/}tables-save" -t nat | grep -c '^-A')"
  done
}

case ${1:-} in
  check) check ;;
  prove) prove ;;
  "") build ;;
  *) die "usage: dockerfile.sh [check]" ;;
esac

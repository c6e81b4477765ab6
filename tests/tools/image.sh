#!/bin/bash
# Builds the three images with whatever builder is here: docker, podman or buildah. BUILDER, BASE, INIT_BASE and PROFILE in the
# environment become build arguments (see the Dockerfile).
set -euo pipefail
cd "$(dirname "$0")/../.."
if docker info > /dev/null 2>&1; then build=(docker build)
elif command -v podman > /dev/null; then build=(podman build)
elif command -v buildah > /dev/null; then build=(buildah bud --layers)
else
  echo "no image builder: install docker (with a running engine), podman or buildah" >&2
  exit 1
fi
arguments=()
for name in BUILDER BASE INIT_BASE PROFILE; do
  if [[ -n ${!name:-} ]]; then arguments+=(--build-arg "$name=${!name}"); fi
done
for target in proxy controller init; do
  "${build[@]}" "${arguments[@]}" --target "$target" -t "oxmesh/$target" .
done

#!/bin/bash
# Licences, banned crates and sources by cargo-deny, where it is there or can be built (its advisory database is not asked:
# it is not reachable everywhere; run `cargo deny check advisories` where it is).
set -uo pipefail
cd "$(dirname "$0")/../.."
tool=target/tools/cargo/bin/cargo-deny
if command -v cargo-deny >/dev/null; then tool=$(command -v cargo-deny)
elif [[ ! -x $tool ]]; then
  cargo install --quiet --locked --root target/tools/cargo cargo-deny --version '^0.20' 2> target/deny-install.log \
    || { echo "SKIPPED: licences and bans: cargo-deny can't be had here (see target/deny-install.log)"; exit 0; }
fi
"$tool" --locked check licenses bans sources

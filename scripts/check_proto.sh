#!/usr/bin/env bash
# Lints proto/, refuses changes that break clients of the API, and checks that the generated code is what proto/ says.
#
# The baseline of the breaking-change check is proto/ktd.v1.binpb, a committed image of the API, so that a fresh clone
# can be checked without its history. `--accept` moves it to the present API: in a commit of its own that says why.
set -euo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
venv=$(cd "${VENV:-$top/.venv}" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -r "$top/proto/." "$work"
# buf resolves imports in its module only; google/rpc comes from the package that the generated code imports.
google=$("$venv/bin/python" -c 'import google.rpc; print(list(google.rpc.__path__)[0])')
mkdir -p "$work/google/rpc"
cp "$google/status.proto" "$work/google/rpc/"
cd "$work"
buf=$venv/bin/buf
if [ "${1:-}" = --accept ]; then
    "$buf" build --path ktd/v1 --exclude-source-info -o "$top/proto/ktd.v1.binpb"
    echo "proto/ktd.v1.binpb is the API as of now"
    exit 0
fi
"$buf" lint --path ktd
"$buf" breaking --against "$top/proto/ktd.v1.binpb" --path ktd/v1
PYTHON=$venv/bin/python "$top/scripts/generate_proto.sh" --check
echo "proto: lint, breaking changes and generated code are fine"

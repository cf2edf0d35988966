#!/usr/bin/env bash
# Regenerates daemon/ktd/{v1,internal/v1} from proto/. `--check` fails when what is committed differs.
#
# The generators are pinned and live in an environment of their own (.work/): generated code runs with protobuf and
# grpcio as old as these and newer, and the oldest SGLang that ktd supports keeps protobuf below 7.
set -euo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
pins=(grpcio-tools==1.81.1 protobuf==6.33.5 mypy-protobuf==5.1.0 googleapis-common-protos==1.75.0 "setuptools<82")
tools=$top/.work/proto-tools
if [ "$(cat "$tools/pins" 2>/dev/null)" != "${pins[*]}" ]; then
    "${PYTHON:-python3}" -m venv --clear "$tools"
    "$tools/bin/python" -m pip install -q --disable-pip-version-check "${pins[@]}"
    echo "${pins[*]}" >"$tools/pins"
fi
python=$tools/bin/python
export PATH="$tools/bin:$PATH" # protoc looks for protoc-gen-mypy there
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
google=$("$python" -c 'import google.rpc, os; print(os.path.dirname(os.path.dirname(list(google.rpc.__path__)[0])))')
cd "$top/proto"
"$python" -m grpc_tools.protoc -I. -I"$google" --python_out="$out" --mypy_out="quiet:$out" \
    --grpc_python_out="$out" --mypy_grpc_out="quiet:$out" ktd/v1/*.proto ktd/internal/v1/*.proto
touch "$out/ktd/v1/__init__.py" "$out/ktd/internal/__init__.py" "$out/ktd/internal/v1/__init__.py"
if [ "${1:-}" = --check ]; then
    diff -r -x __pycache__ "$out/ktd/v1" "$top/daemon/ktd/v1"
    diff -r -x __pycache__ "$out/ktd/internal" "$top/daemon/ktd/internal"
else
    rm -rf "$top/daemon/ktd/v1" "$top/daemon/ktd/internal"
    cp -r "$out/ktd/v1" "$out/ktd/internal" "$top/daemon/ktd/"
fi

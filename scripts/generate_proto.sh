#!/bin/sh
# Regenerates daemon/ktd/{v1,internal/v1} from proto/. `--check` fails when what is committed differs.
set -eu
top=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
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

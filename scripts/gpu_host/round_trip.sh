#!/bin/sh
# Builds csrc on a GPU host without network, tests the way between the GPU and the pool (tests/cuda),
# and measures it (round_trip.py): what docs/results records for the GPU host. Without SGLang.
#
#     KTD_COMMIT=$(git rev-parse --short HEAD) scripts/gpu_host/round_trip.sh FOLDER [OPTION ...]
#
# Options go to round_trip.py. Leaves round_trip.json, round_trip.md and host.txt in FOLDER.
#
# Needs python3 with torch for CUDA, pytest and pybind11 >= 3 (or PYBIND11_DIR, the folder of its
# pybind11Config.cmake), cmake, and a C++20 compiler. Stops at the first failure; no part can hang.
# About two minutes on 16 cores, 10 GB of host memory.
set -eu

if [ $# -eq 0 ]; then
  echo "usage: $0 FOLDER [OPTION ...]" >&2
  exit 2
fi
root=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "$1"
results=$(cd "$1" && pwd)
shift
python=${PYTHON:-python3}
build=${KTD_BUILD:-$root/build/gpu-host}
stage=$build/stage
commit=${KTD_COMMIT:-$(git -C "$root" rev-parse --short HEAD 2>/dev/null || echo unknown)}
began=$(date +%s)

say() { printf '\n== %s (%d s)\n' "$*" "$(($(date +%s) - began))"; }
quietly() { "$@" >"$build/log" 2>&1 || { cat "$build/log"; exit 1; }; }

mkdir -p "$build"
say "host"
{
  echo "commit:   $commit"
  echo "CPU:      $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1), $(nproc) usable"
  echo "GPU:      $(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | head -n 1)"
  echo "kernel:   $(uname -r)"
  echo "python:   $("$python" -c 'import sys, torch; print(sys.version.split()[0], "torch", torch.__version__)')"
} | tee "$results/host.txt"

say "extension"
pybind=${PYBIND11_DIR:-$("$python" -m pybind11 --cmakedir)}
quietly cmake -S "$root/csrc" -B "$build/extension" -DCMAKE_BUILD_TYPE=Release \
  -DPython_EXECUTABLE="$(command -v "$python")" -Dpybind11_DIR="$pybind"
quietly cmake --build "$build/extension" --parallel "$(nproc)"
rm -rf "$stage"
mkdir -p "$stage"
cp -R "$root/daemon/ktd" "$stage/ktd"
quietly cmake --install "$build/extension" --prefix "$stage"
export PYTHONPATH="$stage"
export PYTHONUNBUFFERED=1

found=$("$python" -c 'import ktd; print(ktd.__file__)')
if [ "$found" != "$stage/ktd/__init__.py" ]; then
  echo "$python imports ktd from $found: name one by PYTHON that has no ktd installed" >&2
  exit 2
fi

say "tests"
# The project's pytest settings name plugins that such a host need not have.
printf '[pytest]\n' >"$build/pytest.ini"
timeout --kill-after 5 90 "$python" -m pytest -q -rs -p no:cacheprovider -c "$build/pytest.ini" \
  --rootdir "$root/tests" --confcutdir "$root/tests/cuda" "$root/tests/cuda"

say "measured"
# A pipe would hide the script's exit status from this shell.
timeout --kill-after 5 95 "$python" "$root/scripts/gpu_host/round_trip.py" \
  --json "$results/round_trip.json" "$@" >"$results/round_trip.md" || {
  cat "$results/round_trip.md"
  exit 1
}
cat "$results/round_trip.md"
say "done: $results"

#!/bin/sh
# Builds csrc on a host without network, tests every kernel that its CPU can run, and measures them.
#
#     KTD_COMMIT=$(git rev-parse --short HEAD) scripts/gpu_host/kernels.sh
#
# Needs python3 with torch, pytest and pybind11 >= 3 (or PYBIND11_DIR, the folder of its
# pybind11Config.cmake), cmake, and a C++20 compiler. Stops at the first failure. About two minutes
# on 16 cores.
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-python3}
build=$root/build/gpu-host
stage=$build/stage
commit=${KTD_COMMIT:-$(git -C "$root" rev-parse --short HEAD 2>/dev/null || echo unknown)}

say() { printf '\n== %s\n' "$*"; }
quietly() { "$@" >"$build/log" 2>&1 || { cat "$build/log"; exit 1; }; }

mkdir -p "$build"
say "host"
echo "commit:   $commit"
echo "CPU:      $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1), $(nproc) usable"
echo "kernel:   $(uname -r)"
echo "compiler: $(c++ --version | head -n 1)"
echo "python:   $("$python" -c 'import sys, torch; print(sys.version.split()[0], "torch", torch.__version__)')"

say "native tests"
# Warnings are errors in CI, whose compiler is known; this host's may know others.
KTD_WERROR=OFF "$root/tests/native/run.sh" plain

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
"$python" "$root/scripts/gpu_host/kernel_table.py" --isas

say "Python tests of the kernels"
# The project's pytest settings name plugins that such a host need not have.
printf '[pytest]\n' >"$build/pytest.ini"
"$python" -m pytest -q -rs -p no:cacheprovider -c "$build/pytest.ini" --rootdir "$root/tests/experts" \
  --confcutdir "$root/tests/experts" "$root/tests/experts"

say "forward() on a layer of qwen3-30b-a3b, bf16"
"$python" "$root/scripts/gpu_host/kernel_table.py"

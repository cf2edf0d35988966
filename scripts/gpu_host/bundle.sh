#!/bin/sh
# Makes, on a machine with a network, what engine.sh sets up on a GPU host without one.
#
#     scripts/gpu_host/bundle.sh FOLDER
#
# FOLDER has sglang.tar.xz already: SGLang for Python 3.12 and what it needs, as a folder of the name site. Added are
# wheels/ (what ktd's daemon needs beside it), the extension for Python 3.12 (PYTHON names one that has headers), and,
# if there is nvcc, caches.tar.xz with the Marlin kernels, which SGLang compiles for minutes when they are first used.
# A quarter of an hour on two cores.
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
folder=$(cd "${1:?usage: bundle.sh FOLDER}" && pwd)
python=${PYTHON:-python3.12}
build=${KTD_BUNDLE_BUILD:-/tmp/ktd-bundle}
mkdir -p "$folder/wheels" "$build"

platforms=$(for n in 34 31 28 27 24 17; do printf -- '--platform manylinux_2_%s_x86_64 ' $n; done)
# shellcheck disable=SC2086
"$python" -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp --abi cp312 \
  --abi abi3 --abi none $platforms --platform manylinux2014_x86_64 -c "$root/constraints-0.5.17.txt" -d "$folder/wheels" \
  aiohttp googleapis-common-protos grpcio grpcio-health-checking grpcio-reflection httptools linkify-it-py markdown-it-py \
  mdit-py-plugins platformdirs prometheus_client protobuf Pygments pytest-asyncio pytest-timeout rich structlog textual \
  typing_extensions uc-micro-py

[ -x "$build/venv/bin/python" ] || "$python" -m venv "$build/venv"
"$build/venv/bin/python" -m pip install -q -c "$root/constraints-0.5.17.txt" pybind11
cmake -S "$root/csrc" -B "$build/native" -DCMAKE_BUILD_TYPE=Release -DPython_EXECUTABLE="$build/venv/bin/python" \
  -Dpybind11_DIR="$("$build/venv/bin/python" -m pybind11 --cmakedir)" >"$build/cmake.log"
cmake --build "$build/native" --parallel "$(nproc)" >>"$build/cmake.log"
cp "$build"/native/_native.*.so "$folder/"
strip "$folder"/_native.*.so

command -v nvcc >/dev/null || { echo "no nvcc: without Marlin's kernels"; exit 0; }
"$python" -c "import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2], filter='tar')" \
  "$folder/sglang.tar.xz" "$build"
"$python" "$root/scripts/gpu_host/marlin_kernels.py" "$build/site" "$build/home/.cache/tvm-ffi"
tar -C "$build/home" -cJf "$folder/caches.tar.xz" .cache

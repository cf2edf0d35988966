#!/bin/sh
# Builds csrc on a host without network, tests every kernel that its CPU can run, and measures them
# against the host's ceilings: what docs/results records for the GPU host.
#
#     KTD_COMMIT=$(git rev-parse --short HEAD) scripts/gpu_host/kernels.sh FOLDER [PART ...]
#
# Parts, all of them by default: test, main (qwen3-30b-a3b), large (deepseek-v3 in FP8 and INT4),
# avx2 (qwen3-30b-a3b with the kernels of an AVX2 host), threads (scaling, and a core taken). Each
# but test leaves PART.json, PART.md, PART.svg and PART.log in FOLDER.
#
# Needs python3 with torch, numpy, pytest and pybind11 >= 3 (or PYBIND11_DIR, the folder of its
# pybind11Config.cmake), cmake, and a C++20 compiler. Stops at the first failure. About five minutes
# on 16 cores; KTD_CELL_SECONDS (default 1.2) is what a cell of the tables takes.
set -eu

if [ $# -eq 0 ]; then
  echo "usage: $0 FOLDER [test|main|large|avx2|threads ...]" >&2
  exit 2
fi
root=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "$1"
results=$(cd "$1" && pwd)
shift
parts=${*:-test main large avx2 threads}
python=${PYTHON:-python3}
build=${KTD_BUILD:-$root/build/gpu-host}
stage=$build/stage
seconds=${KTD_CELL_SECONDS:-1.2}
commit=${KTD_COMMIT:-$(git -C "$root" rev-parse --short HEAD 2>/dev/null || echo unknown)}
began=$(date +%s)

say() { printf '\n== %s (%d s)\n' "$*" "$(($(date +%s) - began))"; }
quietly() { "$@" >"$build/log" 2>&1 || { cat "$build/log"; exit 1; }; }

for part in $parts; do
  case $part in
    test | main | large | avx2 | threads) ;;
    *) echo "there is no part '$part': use test, main, large, avx2 or threads" >&2; exit 2 ;;
  esac
done

mkdir -p "$build"
say "host"
{
  echo "commit:   $commit"
  echo "CPU:      $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1), $(nproc) usable"
  echo "kernel:   $(uname -r)"
  echo "compiler: $(c++ --version | head -n 1)"
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

found=$("$python" -c 'import ktd; print(ktd.__file__)')
if [ "$found" != "$stage/ktd/__init__.py" ]; then
  echo "$python imports ktd from $found: name one by PYTHON that has no ktd installed" >&2
  exit 2
fi

bench() { "$python" -m ktd bench kernels "$@"; }
bench --list | tee "$build/list"

# Of the formats named, those that a kernel set computes, joined by commas.
computed() {
  isa=$1
  shift
  found=
  for format in "$@"; do
    if sed -n "s/^$isa: //p" "$build/list" | tr -d ' ' | tr ',' '\n' | grep -qx "$format"; then
      found=$found${found:+,}$format
    fi
  done
  echo "$found"
}

# measure PART OPTION...: the tables, into FOLDER.
measure() {
  part=$1
  shift
  say "$part: $*"
  bench "$@" --plot "$results/$part.svg" --markdown "$results/$part.md" --json \
    2>"$results/$part.log" >"$results/$part.json" || { cat "$results/$part.log"; exit 1; }
  cat "$results/$part.md"
}

best=$(sed -n '/: not here/d; /^shapes/d; s/:.*//p' "$build/list" | head -n 1)
eight="fp8_block fp8_channel int8"
four="int4 mxfp4"

for part in $parts; do
  case $part in
    test)
      say "native tests"
      # Warnings are errors in CI, whose compiler is known; this host's may know others.
      KTD_WERROR=OFF "$root/tests/native/run.sh" plain
      say "Python tests of the kernels"
      # The project's pytest settings name plugins that such a host need not have.
      printf '[pytest]\n' >"$build/pytest.ini"
      for tests in tests/experts tests/bench/test_kernels_parts.py; do
        "$python" -m pytest -q -rs -p no:cacheprovider -c "$build/pytest.ini" --rootdir "$root/tests" \
          --confcutdir "$root/tests/experts" "$root/$tests"
      done
      ;;
    main)
      # shellcheck disable=SC2086 # lists of words
      measure main --format "$(computed "$best" bf16 $eight $four)" \
        --tokens 1,4,16,256,1024,8192 --seconds "$seconds"
      ;;
    large)
      formats=$(computed "$best" fp8_block int4)
      if [ -n "$formats" ]; then
        measure large --shape deepseek-v3 --format "$formats" --tokens 1,4,16,256,1024,8192 \
          --seconds "$seconds" --no-torch
      else
        echo "large: not measured, the $best kernels compute neither fp8_block nor int4"
      fi
      ;;
    avx2)
      # shellcheck disable=SC2086
      measure avx2 --isa avx2 --format "$(computed avx2 bf16 $eight $four)" \
        --tokens 1,4,16,256,1024 --seconds "$seconds" --no-torch
      ;;
    threads)
      cores=$(nproc)
      threads=1
      list=1
      while [ "$((threads * 2))" -le "$cores" ]; do
        threads=$((threads * 2))
        list=$list,$threads
      done
      if [ "$threads" -lt "$cores" ]; then list=$list,$cores; fi
      measure threads --format bf16 --tokens 1 --threads "$list" --seconds "$seconds" --no-torch
      if [ "$cores" -gt 1 ]; then
        measure busy --format bf16 --tokens 1 --busy-core --seconds "$seconds" --no-torch
      fi
      ;;
  esac
done
say "done: $results"

#!/bin/sh
# Builds and runs the pool's measuring program: barrier and wake-up latency, the overhead of a call
# from flag to answer, and the speed that is left when another process takes a core. Needs cmake, a
# C++20 compiler, and a host with nothing else to do; takes under a minute.
#
#   scripts/gpu_host/pool.sh [threads]
#
# To be reached: flag to answer at most 5 us, at least 0.8 of (n - 1) / n with a core taken.
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
build=${KTD_BUILD:-$root/build/pool-bench}
mkdir -p "$build"
cmake -S "$root/csrc" -B "$build" -DCMAKE_BUILD_TYPE=Release -DKTD_BINDINGS=OFF -DKTD_BENCH=ON \
  >"$build/log" 2>&1 || { cat "$build/log"; exit 1; }
cmake --build "$build" --target ktd_pool_bench_program --parallel >"$build/log" 2>&1 ||
  { cat "$build/log"; exit 1; }
exec "$build/bench/pool_bench" "$@"

#!/bin/sh
# Builds and runs the measuring program of AMX's tile instructions: what a product and a load cost
# alone and beside each other, on one core and on all, and whether a core is shared. Needs cmake, a
# C++20 compiler, and a CPU with AMX; takes seconds.
#
#   scripts/gpu_host/tiles.sh
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
build=${KTD_BUILD:-$root/build/tile-bench}
mkdir -p "$build"
cmake -S "$root/csrc" -B "$build" -DCMAKE_BUILD_TYPE=Release -DKTD_BINDINGS=OFF -DKTD_BENCH=ON \
  >"$build/log" 2>&1 || { cat "$build/log"; exit 1; }
cmake --build "$build" --target ktd_tile_bench --parallel >"$build/log" 2>&1 ||
  { cat "$build/log"; exit 1; }
exec "$build/bench/tile_bench"

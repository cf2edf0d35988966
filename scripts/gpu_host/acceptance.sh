#!/bin/sh
# What must hold on a GPU, in less than seven minutes: many small engines side by side on one card.
#
#     scripts/gpu_host/engine.sh setup BUNDLE                once on a host
#     scripts/gpu_host/acceptance.sh FOLDER [JOB ...]        all jobs of acceptance.py, or those named
#     scripts/gpu_host/acceptance.sh FOLDER --lanes 4 JOB    on so many at a time
#
# FOLDER gets results.txt, pytest.log, and daemons.tar.xz with every daemon's log. Each engine's memory is bounded by its
# tokens and not by --mem-fraction-static, which counts what others have taken meanwhile against the engine that starts.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
[ $# -ge 1 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
mkdir -p "$1"
export KTD_TEST_DEVICE=cuda
# Two ranks among engines of one: GPUs are not equally full.
export SGLANG_ENABLE_TP_MEMORY_INBALANCE_CHECK=false
export KTD_TEST_SGLANG_ARGS="${KTD_TEST_SGLANG_ARGS:---attention-backend triton --sampling-backend pytorch --grammar-backend none\
 --mem-fraction-static 0.7 --max-running-requests 16 --cuda-graph-max-bs-decode 8\
 --chunked-prefill-size 2048 --enforce-disable-flashinfer-allreduce-fusion}"
exec "$here/engine.sh" run "${PYTHON:-python3}" "$here/acceptance.py" "$@"

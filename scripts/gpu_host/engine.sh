#!/bin/sh
# Runs ktd with SGLang on a GPU host that has no network.
#
#     scripts/gpu_host/engine.sh setup FOLDER     once: unpack, build the extension (about a minute on 16 cores)
#     scripts/gpu_host/engine.sh test [ARGUMENT]  the tests that need a GPU and no engine (a minute and a half)
#     scripts/gpu_host/engine.sh run COMMAND ...  COMMAND with this checkout's ktd, SGLang and their needs importable
#
# FOLDER holds sglang.tar.xz (SGLang and what it needs, as a site folder of that name), wheels/ (what ktd's daemon needs
# beside it), and, if Python has no pybind11 of its own, pybind11/. The host has python3 with torch for CUDA, cmake, and
# a C++20 compiler. Everything is put below KTD_WORK (/tmp/ktd-engine); kernels that Triton and FlashInfer compile are
# kept in the caches of the user, and, if FOLDER has one, come from caches.tar.xz; an extension that was built on such a
# host before is taken from FOLDER instead of being built.
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
work=${KTD_WORK:-/tmp/ktd-engine}
python=${PYTHON:-python3}
stage=$work/stage
began=$(date +%s)

say() { printf '== %s (%d s)\n' "$*" "$(($(date +%s) - began))"; }
quietly() { "$@" >"$work/log" 2>&1 || { tail -n 60 "$work/log"; exit 1; }; }

setup() {
  folder=$(cd "$1" && pwd)
  mkdir -p "$work"
  say "unpack"
  "$python" -c "import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2], filter='tar')" "$folder/sglang.tar.xz" "$work" &
  unpacking=$!
  if [ -f "$folder/caches.tar.xz" ]; then tar -C "$HOME" -xJf "$folder/caches.tar.xz"; fi
  quietly "$python" -m pip install --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$work/deps" "$folder"/wheels/*.whl
  say "extension"
  mkdir -p "$stage/ktd/experts"
  if ls "$folder"/_native.*.so >/dev/null 2>&1; then cp "$folder"/_native.*.so "$stage/ktd/experts/"; else build "$folder"; fi
  wait "$unpacking"
  quietly "$python" -m compileall -q -j 0 "$work/site" "$work/deps" || true
  say "ready"
}

build() {
  folder=$1
  pybind=$folder/pybind11/share/cmake/pybind11
  [ -d "$pybind" ] || pybind=$("$python" -m pybind11 --cmakedir)
  quietly cmake -S "$root/csrc" -B "$work/build" -DCMAKE_BUILD_TYPE=Release -DPython_EXECUTABLE="$(command -v "$python")" \
    -Dpybind11_DIR="$pybind"
  quietly cmake --build "$work/build" --parallel "$(nproc)"
  quietly cmake --install "$work/build" --prefix "$stage"
}

run() {
  # The extension stays, the rest is this checkout's; SGLang finds plugins by a distribution's metadata.
  cp -R "$root/daemon/ktd" "$root/tui/ktd_tui" "$stage/"
  info=$stage/ktd-0.dist-info
  mkdir -p "$info"
  printf 'Metadata-Version: 2.1\nName: ktd\nVersion: 0\n' >"$info/METADATA"
  "$python" - "$root/pyproject.toml" >"$info/entry_points.txt" <<'EOF'
import sys
import tomllib

with open(sys.argv[1], "rb") as file:
    project = tomllib.load(file)["project"]
for group, points in project["entry-points"].items():
    print(f"[{group}]")
    for name, target in points.items():
        print(f"{name} = {target}")
EOF
  export PYTHONPATH="$stage:$work/deps:$work/site" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
  export CUDA_HOME="${CUDA_HOME:-/usr/local/cuda}"
  cd "$root"
  exec "$@"
}

# The project's pytest settings name plugins that such a host need not have.
tests() {
  printf '[pytest]\nmarkers = engine\n' >"$work/pytest.ini"
  run "$python" -m pytest -q -rs -p no:cacheprovider -c "$work/pytest.ini" --rootdir "$root" "$@" \
    "$root/tests/cuda" "$root/tests/sgl/test_prefill_division.py" "$root/tests/sgl/test_prefill_stream.py" "$root/tests/sgl/test_gpu_layer.py" \
    "$root/tests/sgl/test_gpu_trial.py" "$root/tests/sgl/test_gpu_repacked.py" "$root/tests/sgl/test_staged_uploads.py" \
    "$root/tests/sgl/test_staged_layer.py"
}

case "${1:-}" in
  setup) setup "$2" ;;
  test) shift; tests "$@" ;;
  run) shift; run "$@" ;;
  *) sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac

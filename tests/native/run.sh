#!/bin/sh
# Builds csrc with warnings as errors and runs the native tests: plain, under ASan + UBSan, and
# under TSan. `run.sh plain` (or asan, tsan) does one of them. Sanitizers see the same at -O1, for
# which GCC takes an eighth of the time that -O2 takes for some kernels.
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
generator=
if command -v ninja >/dev/null 2>&1; then generator='-G Ninja'; fi

run() {
  name=$1 sanitize=$2 type=$3
  build=$root/build/native-$name
  # shellcheck disable=SC2086 # two words, or none
  cmake -S "$root/csrc" -B "$build" $generator -DCMAKE_BUILD_TYPE="$type" -DKTD_BINDINGS=OFF \
    -DKTD_TESTS=ON -DKTD_WERROR="${KTD_WERROR:-ON}" -DKTD_SANITIZE="$sanitize" \
    -DCMAKE_CXX_FLAGS_RELWITHDEBINFO="-O1 -g -DNDEBUG" >"$build.log" 2>&1 || {
    cat "$build.log"
    exit 1
  }
  cmake --build "$build" >"$build.log" 2>&1 || {
    cat "$build.log"
    exit 1
  }
  echo "native tests, $name:"
  "$build/tests/ktd_native_tests"
}

mkdir -p "$root/build"
for name in ${*:-plain asan tsan}; do
  case $name in
    plain) run plain '' Release ;;
    asan) run asan address,undefined RelWithDebInfo ;;
    tsan) run tsan thread RelWithDebInfo ;;
    *)
      echo "run.sh takes plain, asan and tsan, not '$name'" >&2
      exit 2
      ;;
  esac
done

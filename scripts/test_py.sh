#!/usr/bin/env bash
# Runs all tests of the Python side, several files at a time, and then by themselves those marked `alone`; with
# arguments, one pytest with these.
#
#   VENV=.venv scripts/test_py.sh [PYTEST ARGUMENT ...]
set -uo pipefail
cd "$(dirname "$0")/.."
# Some containers set it; each of the many processes that tests start would then compile ktd again.
unset PYTHONDONTWRITEBYTECODE
pytest=("${VENV:-.venv}/bin/python" -m pytest)
[ $# -eq 0 ] || exec "${pytest[@]}" "$@"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
color=no
[ -t 1 ] && color=yes
status=0

run() {
    local name=$1
    shift
    "${pytest[@]}" "--color=$color" "$@" 2>&1 | tee "$work/$name" || status=1
}

# A file stays with one worker, which has the engines that its tests share. Files keep their order: those of the first
# folders take longest.
run parallel -m "not alone and not soak" -n auto --dist loadfile --no-loadscope-reorder
run alone -m "alone and not soak"
[ $status = 0 ] || {
    echo "make test-py: failed, of both runs above:"
    sed 's/\x1b\[[0-9;]*m//g' "$work/parallel" "$work/alone" | grep -E '^(FAILED|ERROR) |^=+ .* in .*=+$'
}
exit $status

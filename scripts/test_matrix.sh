#!/usr/bin/env bash
# Runs the tests that meet SGLang in each of the given environments and writes docs/results/test-matrix.md.
#
#   scripts/test_matrix.sh .venv-0.5.17 .venv
set -uo pipefail
cd "$(dirname "$0")/.."
result=docs/results/test-matrix.md
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p docs/results
status=0

versions() {
    "$1/bin/python" -c '
import sys
from importlib.metadata import version
print(" | ".join([version("sglang"), version("torch"), version("protobuf"), "%d.%d.%d" % sys.version_info[:3]]))'
}

{
    echo "# The tests that meet SGLang, on every release that ktd supports"
    echo
    echo "Written by \`make test-matrix\` on $(date -u +%Y-%m-%d), commit $(git rev-parse --short HEAD)$(git diff --quiet HEAD -- daemon csrc tests || echo ' with changes'), \
$(nproc) × $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1)."
    echo "The tests are those of \`tests/sgl\` and those marked \`engine\`, which start real engines."
    echo
    echo "| SGLang | torch | protobuf | Python | result |"
    echo "|---|---|---|---|---|"
} >"$work/result"

for venv in "$@"; do
    echo "==> $venv: SGLang, torch, protobuf, Python: $(versions "$venv")"
    log=$work/$(basename "$venv")
    "$venv/bin/python" -m pytest tests/sgl tests/test_generated.py -m "not soak and not packaging and not systemd" 2>&1 | tee "$log.unit"
    first=${PIPESTATUS[0]}
    "$venv/bin/python" -m pytest -m "engine and not soak" --ignore=tests/sgl 2>&1 | tee "$log.engine"
    second=${PIPESTATUS[0]}
    [ "$first" = 0 ] && [ "$second" = 0 ] || status=1
    summary() { tail -1 "$1" | tr -d '=' | sed 's/^ *//; s/ *$//; s/ in [0-9.]*s.*//'; }
    echo "| $(versions "$venv") | tests/sgl: $(summary "$log.unit"); engine: $(summary "$log.engine") |" >>"$work/result"
    grep -h -E '^(FAILED|ERROR|SKIPPED)' "$log.unit" "$log.engine" | sort -u | sed 's/^/- /' >"$log.notes"
    if [ -s "$log.notes" ]; then
        { echo; echo "With $("$venv/bin/python" -c 'from importlib.metadata import version; print("SGLang", version("sglang"))'):"; echo; cat "$log.notes"; } >>"$work/notes"
    fi
done
touch "$work/notes"
cat "$work/result" "$work/notes" >"$result"
echo "==> $result"
exit "$status"

#!/usr/bin/env bash
# Makes or reuses a virtual environment with ktd in it, editable, and installs only what changed.
#
#   scripts/install.sh VENV CONSTRAINTS EXTRAS        for example .venv constraints.txt engine,dev
#
# PYTHON names the interpreter of a new environment. What is installed is remembered in VENV/ktd.stamp by content, so
# that a second run costs a few file reads and a change in csrc/ costs one native build.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1 constraints=$2 extras=$3

fail() { printf 'ktd: %s\n' "$1" >&2; exit 1; }
say() { printf '==> %s\n' "$1"; }

interpreter() {
    local name
    for name in ${PYTHON:+"$PYTHON"} python3.11 python3 python3.13 python3.12; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$name"
            return
        elif [ -n "${PYTHON:-}" ]; then
            return
        fi
    done
}

# Everything that the system itself must bring, named at once: cmake and ninja come with the test tools from pip.
check_system() {
    local python=$1 missing=() packages=()
    if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
        missing+=("Python's venv module") packages+=(python3-venv)
    fi
    if ! "$python" -c 'import os, sysconfig, sys
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))'; then
        missing+=("Python's C headers") packages+=(python3-dev)
    fi
    if ! command -v "${CXX:-c++}" >/dev/null && ! command -v g++ >/dev/null && ! command -v clang++ >/dev/null; then
        missing+=("a C++20 compiler") packages+=(g++)
    fi
    if [ ${#missing[@]} -gt 0 ]; then
        fail "this system lacks $(printf '%s, ' "${missing[@]}" | sed 's/, $//'): install it with \`apt install ${packages[*]}\` and run make again."
    fi
}

digest() { sha256sum | cut -c1-32; }

if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    python=$(interpreter)
    [ -n "$python" ] || fail "no Python 3.11 or newer was found${PYTHON:+ under the name $PYTHON}: install it (\`apt install python3 python3-venv python3-dev\`) or name one with PYTHON=…"
    check_system "$python"
    say "making $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv"
fi

exec 9<"$venv"
flock -n 9 || { say "waiting for another installation into $venv"; flock 9; }

python=$venv/bin/python
stamp=$venv/ktd.stamp
place=$(pwd -P)
dependencies=$({ echo "$place $extras"; "$python" --version; cat pyproject.toml "$constraints"; } | digest)
native=$({ cat daemon/ktd/version.py; find csrc -type f -print0 | sort -z | xargs -0 sha256sum; } | digest)

if [ "$(cat "$stamp" 2>/dev/null)" = "$dependencies $native" ] &&
    "$python" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("ktd.experts._native") is None)' 2>/dev/null; then
    exit 0
fi

# A terminal gets pip's progress bars, a log only what is new.
progress=off
[ -t 1 ] && progress=on
news() { grep --line-buffered -v -E '^Requirement already satisfied'; }
pip() { "$python" -m pip --disable-pip-version-check --no-input "$@" --progress-bar "$progress"; }
editable() { pip install --no-build-isolation --config-settings build-dir="build/$(basename "$venv")" "$@"; }

if [ "$(cut -d' ' -f1 "$stamp" 2>/dev/null)" = "$dependencies" ]; then
    check_system "$python"
    say "building the native experts (csrc/ changed)"
    editable -q --no-deps -e .
else
    check_system "$python"
    say "installing the build tools"
    pip install -q -c "$constraints" "scikit-build-core>=1.0" "pybind11>=3.0" cmake ninja
    say "installing ktd[$extras] and what it needs; with the engine that is about 11 GB, some five minutes the first time"
    if [ -t 1 ]; then editable -c "$constraints" -e ".[$extras]"; else editable -c "$constraints" -e ".[$extras]" | news; fi
fi
printf '%s %s\n' "$dependencies" "$native" >"$stamp"
say "$venv is ready"

#!/usr/bin/env bash
# Writes a constraints file from a virtual environment that passed the tests: scripts/freeze.sh .venv >constraints.txt
set -euo pipefail
echo "# Versions that the tests passed with. Written by scripts/freeze.sh; pip takes it with -c."
"$1/bin/python" -m pip --disable-pip-version-check freeze --exclude-editable --exclude ktd | grep -E '^[A-Za-z0-9._-]+==[^ ]+$' |
    LC_ALL=C sort -f

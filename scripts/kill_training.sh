#!/usr/bin/env bash
# 200 times kill -9 at random moments of training (a quarter of an hour on 2 cores): see tests/cli/kill_test.py.
set -euo pipefail
cd "$(dirname "$0")/.."
exec .venv/bin/python tests/cli/kill_test.py build/moh "${1:-200}" "${2:-$RANDOM}"

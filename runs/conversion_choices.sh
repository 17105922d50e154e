#!/usr/bin/env bash
# All choices of `moh convert` side by side: perplexity against the share of active heads.
#
#   runs/conversion_choices.sh OUT CALIBRATION VALID MODEL [MODEL...] [--tune STEPS] [--windows N] [--sequence N]
#
# Several MODELs are one architecture trained with several seeds: mean and standard deviation. --tune adds one checkpoint
# for all shares: tuned with a share drawn for every batch, MODEL its teacher, once for every MODEL or three times if there
# is one. --windows limits the windows of VALID. Token files (.npy) or text. Prints a table and writes OUT/choices.json,
# which `moh report OUT/choices.json --out OUT/choices.html` draws. Without --tune a minute or two for a model of 260,032
# parameters and 16 windows.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "$root/.venv/bin/python" "$root/scripts/conversion_choices.py" "$@"

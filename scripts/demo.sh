#!/usr/bin/env bash
# The main job, end to end, into demo/: see scripts/demo.py. DATA=file.txt takes a text of yours, MODEL=folder a dense
# Hugging Face LLaMA folder.
set -euo pipefail
cd "$(dirname "$0")/.."
exec .venv/bin/python scripts/demo.py ${DATA:+--data "$DATA"} ${MODEL:+--model "$MODEL"} "$@"

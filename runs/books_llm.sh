#!/usr/bin/env bash
# Dense models of about seven million parameters (preset llm-mini: 6 layers, 8 heads of 32, 4,096 pieces) on a text of
# some megabytes, three seeds; then runs/conversion_choices.sh on all three.
#
#   runs/books_llm.sh TRAIN.txt VALID.txt OUT [STEPS]
#
# STEPS (default 1,000) of 16 x 256 tokens on one thread, about 25 minutes a model. What is finished is not repeated.
set -euo pipefail
train=$1 valid=$2 out=$3 steps=${4:-1000}
cd "$(dirname "$0")/.."
scripts/encode_text.sh "$train" "$valid" "$out" 4096
for seed in 1 2 3; do
  run=$out/dense-$seed
  [[ -f $run/model.safetensors ]] && continue
  rm -rf "$run"
  build/moh train --preset llm-mini --tokenizer "$out/tokenizer" --data "$out/train.npy" --valid "$out/valid.npy" \
    --valid-windows 100 --out "$run" --steps "$steps" --batch 16 --sequence 256 --lr 2e-3 --warmup 50 --seed "$seed" \
    --threads 1 --dtype "${DTYPE:-fp32}" --validate-every $((steps / 4)) --checkpoint-every 0 >/dev/null
done
runs/conversion_choices.sh "$out/choices" "$out/train.npy" "$out/valid.npy" "$out"/dense-{1,2,3} --sequence 256 \
  --windows 200 --tune $((steps / 4))

#!/usr/bin/env bash
# Dense against MoH at 75 % and 50 % of the heads, trained from scratch on the same tokens, three seeds each.
#
#   runs/from_scratch.sh TRAIN.txt VALID.txt OUT [STEPS]
#
# A SentencePiece vocabulary of 1,024 is made from TRAIN; the models are the presets llm-tiny and moh-llm-tiny (about a
# million parameters, 8 heads, the paper's two-stage router, 1/2 + 1/4 of the heads at 75 %, 1/4 + 1/4 at 50 %). STEPS of 16 x
# 128 tokens (default 400 = 0.8 M tokens), one thread, about 0.4 s a step: an hour for the nine runs. Prints mean and spread of
# the validation perplexity and how the load-balance loss goes; runs that are finished are not repeated.
set -euo pipefail
train=$1 valid=$2 out=$3 steps=${4:-400}
cd "$(dirname "$0")/.."
scripts/encode_text.sh "$train" "$valid" "$out" 1024
for seed in 1 2 3; do
  for share in 1 0.75 0.5; do
    run=$out/$share-seed$seed
    [[ -f $run/model.safetensors ]] && continue
    rm -rf "$run"
    model=(--preset moh-llm-tiny --activated "$share")
    [[ $share == 1 ]] && model=(--preset llm-tiny)
    build/moh train "${model[@]}" --tokenizer "$out/tokenizer" --data "$out/train.npy" --valid "$out/valid.npy" --valid-windows 400 \
      --out "$run" --steps "$steps" --batch 16 --sequence 128 --lr 3e-3 --warmup 40 --seed "$seed" --threads 1 \
      --validate-every $((steps / 4)) --checkpoint-every 0 --log-every 10 >/dev/null
  done
done
.venv/bin/python scripts/from_scratch_table.py "$out"

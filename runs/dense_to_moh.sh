#!/usr/bin/env bash
# A dense LLaMA folder becomes MoH models at 75 % and 50 % of the heads, each tuned with and without distillation.
#
#   runs/dense_to_moh.sh MODEL TRAIN VALID OUT
#
# Data: token files (.npy) or text. 1,000 steps of 16 x 512 tokens = 8.2 M tokens a run; for a model of 260,032 parameters
# about 5 minutes a run on 2 cores. Expected for stories260K on its own samples: docs/results.md.
# One shared head (more where 5 or 3 routed ones leave more): on a model of 8 heads this converts with the least loss.
set -euo pipefail
model=$1 train=$2 valid=$3 out=$4
moh=$(dirname "$0")/../build/moh
mkdir -p "$out"
"$moh" eval "$model" --data "$valid" --sequence 512

for share in 0.75:5 0.5:3; do
  activated=${share%:*} top_k=${share#*:}
  "$moh" convert "$model" "$out/converted-$activated" --activated "$activated" --top-k "$top_k"
  for teacher in distilled plain; do
    distill=()
    [[ $teacher == distilled ]] && distill=(--distill "$model")
    "$moh" tune "$out/converted-$activated" "${distill[@]}" --data "$train" --valid "$valid" --out "$out/$teacher-$activated" \
      --steps 1000 --batch 16 --sequence 512 --lr 1.5e-3 --final-lr 0.02 --weight-decay 0 --validate-every 200
    "$moh" eval "$out/$teacher-$activated" --data "$valid" --sequence 512
  done
done

#!/usr/bin/env bash
# A dense LLaMA folder becomes MoH models at 75 % and 50 % of the heads, each tuned with and without distillation.
#
#   runs/dense_to_moh.sh MODEL TRAIN VALID OUT
#
# Data: token files (.npy) or text. 1,000 steps of 16 x 512 tokens = 8.2 M tokens a run; for a model of 260,032 parameters
# about 8 minutes a run on 2 cores. Expected for stories260K on its own samples: docs/results.md.
# A two-stage router that begins with the importance that TRAIN shows of every head, and the most important heads shared:
# 2 shared and 4 of 6 routed at 75 %, 1 shared and 3 of 7 routed at 50 % of 8 heads.
set -euo pipefail
model=$1 train=$2 valid=$3 out=$4
moh=$(dirname "$0")/../build/moh
mkdir -p "$out"
"$moh" eval "$model" --data "$valid" --sequence 512

for share in 0.75:4:1e-3 0.5:3:2e-3; do
  IFS=: read -r activated top_k lr <<<"$share"
  "$moh" convert "$model" "$out/converted-$activated" --activated "$activated" --top-k "$top_k" \
    --router two-stage --fit-router --shared-by importance --data "$train"
  for teacher in distilled plain; do
    distill=()
    [[ $teacher == distilled ]] && distill=(--distill "$model")
    "$moh" tune "$out/converted-$activated" "${distill[@]}" --data "$train" --valid "$valid" --out "$out/$teacher-$activated" \
      --steps 1000 --batch 16 --sequence 512 --lr "$lr" --final-lr 0.02 --weight-decay 0 --validate-every 200
    "$moh" eval "$out/$teacher-$activated" --data "$valid" --sequence 512
  done
done

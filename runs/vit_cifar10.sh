#!/usr/bin/env bash
# A small MoH-ViT on CIFAR-10, by default the MoH model; PRESET=vit-cifar trains its dense twin, and further flags reach
# `moh train`, e.g. the paper's ablation of shared heads and of the second stage:
#   runs/vit_cifar10.sh --moh.two_stage false
#   runs/vit_cifar10.sh --moh.shared_heads '[0,0,0,0]' --moh.top_k '[2,3,6,9]'
#   runs/vit_cifar10.sh --moh.shared_heads '[2,3,6,9]' --moh.top_k '[0,0,0,0]'    # shared heads only
# Data: DATA/train and DATA/test, one folder of 32x32 pictures per class. STEPS=3000 (3.8 epochs) take 7 minutes at the 450
# pictures a second of 2 Zen 4 cores. DTYPE=fp32 is the faster one on CPUs without bf16 instructions.
set -euo pipefail
cd "$(dirname "$0")/.."
DATA=${DATA:?folder with train and test}
PRESET=${PRESET:-moh-vit-cifar}
OUT=${OUT:-out/$PRESET}
STEPS=${STEPS:-3000}
build/moh train --preset "$PRESET" --data "$DATA/train" --valid "$DATA/test" --out "$OUT" \
  --batch 64 --steps "$STEPS" --warmup 100 --lr 1e-3 --dtype "${DTYPE:-bf16}" --crop padded --repeats 1 \
  --randaugment-ops 0 --erase 0 --mixup 0 --cutmix 0 --valid-images 1000 --validate-every 250 --seed "${SEED:-0}" "$@"
build/moh eval "$OUT" --data "$DATA/test"

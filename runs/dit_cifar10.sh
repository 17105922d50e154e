#!/usr/bin/env bash
# A small MoH-DiT at 75 % of the heads on the pixels of CIFAR-10, its dense twin with equal steps, sheets of samples, and
# Frechet distances to the test pictures in the feature space of a MoH-ViT trained by runs/vit_cifar10.sh.
#   DATA   folder with train and test, one subfolder of 32x32 pictures per class (required)
#   VIT    that MoH-ViT's folder; trained first if it is not there
#   OUT    results: MODEL/ (training folder with samples/), sheet-MODEL-SCALE.png, MODEL-SCALE.npz, table.jsonl
# 64 tokens of 4x4 pixels, trained for the velocity in STEPS of 64 pictures (150 a second on one core of a Zen 5 with
# --threads 1: 80 minutes a model); SAMPLES pictures per model and guidance scale, made by DPM-Solver++ in 25 steps.
# PRESETS, SCALES and further flags (they reach `moh train`) as you like. DTYPE=fp32 is the faster one on CPUs without
# bf16 instructions. Run it again after an interruption: what is done stays.
set -euo pipefail
cd "$(dirname "$0")/.."
DATA=${DATA:?folder with train and test}
OUT=${OUT:-out/dit-cifar10}
VIT=${VIT:-out/moh-vit-cifar}
STEPS=${STEPS:-11000}
SAMPLES=${SAMPLES:-1000}
SCALES=${SCALES:-1 2}
SEED=${SEED:-0}
moh=build/moh
mkdir -p "$OUT"

[ -e "$VIT/model.safetensors" ] || OUT="$VIT" DATA="$DATA" runs/vit_cifar10.sh
[ -e "$OUT/test.npz" ] || $moh features "$VIT" "$DATA/test" --out "$OUT/test.npz"

for preset in ${PRESETS:-moh-dit-pixel-tiny dit-pixel-tiny}; do
  run=$OUT/$preset
  if [ ! -e "$run/model.safetensors" ]; then
    if [ -d "$run/checkpoints" ]; then
      $moh train --resume --out "$run" --steps "$STEPS"
    else
      $moh train --preset "$preset" --data "$DATA/train" --out "$run" --model.patch_size 4 \
        --model.prediction_type v_prediction --batch 64 --steps "$STEPS" --lr 1e-3 --final-lr 0.05 --warmup 200 \
        --ema 0.999 --dtype "${DTYPE:-bf16}" --illustrate-every 1000 --checkpoint-every 500 --seed "$SEED" "$@"
    fi
  fi
  for scale in $SCALES; do
    name=$preset-$scale
    common=(--sampler dpm++ --steps 25 --clip --cfg-scale "$scale" --seed "$SEED")
    [ -e "$OUT/sheet-$name.png" ] || $moh sample "$run" "${common[@]}" --count 80 --columns 10 --out "$OUT/sheet-$name.png"
    [ -e "$OUT/$name.npz" ] || $moh sample "$run" "${common[@]}" --count "$SAMPLES" --batch 16 --out "$OUT/$name.npz"
    [ -e "$OUT/$name-features.npz" ] || $moh features "$VIT" "$OUT/$name.npz" --out "$OUT/$name-features.npz"
  done
done

# One line a model and scale: distance, inception score in the classifier's classes, precision, recall, and the share of
# pictures that the classifier takes for the class they were made for (`moh sample` makes the classes in turn).
for file in "$OUT"/*-features.npz; do
  $moh eval --real "$OUT/test.npz" --generated "$file" --json | .venv/bin/python -c '
import json, pathlib, sys
import numpy
found = numpy.load(sys.argv[1])["probabilities"]
right = found.argmax(1) == numpy.arange(len(found)) % found.shape[1]
name = pathlib.Path(sys.argv[1]).name.removesuffix("-features.npz")
print(json.dumps({"model": name, **json.load(sys.stdin), "classified_as_asked": right.mean()}))' "$file"
done | tee "$OUT/table.jsonl"

#!/usr/bin/env bash
# A SentencePiece vocabulary of TRAIN and both texts as token ids: OUT/tokenizer, OUT/train.npy, OUT/valid.npy, once.
#
#   scripts/encode_text.sh TRAIN.txt VALID.txt OUT PIECES
set -euo pipefail
train=$1 valid=$2 out=$3 pieces=$4
moh=$(dirname "$0")/../build/moh
mkdir -p "$out"
[[ -f $out/valid.npy ]] && exit
"$moh" tokenizer train "$out/tokenizer" --file "$train" --vocab-size "$pieces"
"$moh" tokenizer encode "$out/tokenizer" --file "$train" --out "$out/train.npy"
"$moh" tokenizer encode "$out/tokenizer" --file "$valid" --out "$out/valid.npy"

#!/usr/bin/env bash
# What the tests of pictures compare with: diffusers (the autoencoder), scipy (distances), Pillow (files). Into .venv, once;
# torch stays the one that is there. Without a network the tests concerned are skipped.
set -euo pipefail
cd "$(dirname "$0")/.."
packages=(diffusers==0.42.1 safetensors scipy pillow)
stamp=.venv/.picture-tests-$(IFS=_; echo "${packages[*]}")
[[ -f $stamp ]] && exit 0
echo "setup: installing for the tests: ${packages[*]}"
torch=$(.venv/bin/python -c 'import torch; print(torch.__version__)')
if .venv/bin/python -m pip install -q --disable-pip-version-check -c <(echo "torch==$torch") "${packages[@]}" \
    2> >(grep -v "is ignored" >&2); then
  touch "$stamp"
else
  echo "setup: not installed: the tests that need it are skipped" >&2
fi

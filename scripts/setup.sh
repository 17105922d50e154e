#!/usr/bin/env bash
# Installs what a bare Debian 12 lacks: Debian packages (as root, or through sudo) and a virtual environment .venv with
# torch. Does nothing, quickly, when all is there. A torch of your own is used if Torch_ROOT names it or if the active
# Python environment has one. `scripts/setup.sh tests` also installs what only the tests use.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(g++ cmake ninja-build python3-venv libgtest-dev libfmt-dev nlohmann-json3-dev libcli11-dev
          libtomlplusplus-dev libsentencepiece-dev libpcre2-dev libutf8proc-dev libturbojpeg0-dev libpng-dev
          libboost-dev libgloo-dev libzstd-dev)
[[ ${1:-} != tests ]] || packages+=(clang-16 libclang-rt-16-dev chromium)  # for the fuzz targets and the pictures of reports
missing=()
for package in "${packages[@]}"; do
  [[ "$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null)" == "install ok installed" ]] || missing+=("$package")
done
if ((${#missing[@]})); then
  as_root=()
  if ((EUID != 0)); then
    command -v sudo >/dev/null || { echo "setup: not root and no sudo; install by hand: ${missing[*]}" >&2; exit 1; }
    as_root=(sudo)
  fi
  echo "setup: Debian packages are missing and are installed now, by ${as_root[*]:+sudo }apt-get install: ${missing[*]}"
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

torch_version=$(cat scripts/torch-version)
stamp=.venv/.ready-$torch_version

# Oracles of the tests. torch stays the one that is there; without a network the tests concerned are skipped.
test_packages=(transformers==5.24.0 sentencepiece==0.2.3 diffusers==0.42.1 gguf==0.19.0 safetensors scipy pillow
               peft==0.21.2 accelerate==1.15.0 optimum-quanto==0.2.7 triton==3.9.0)
install_test_packages() {
  local stamp torch
  stamp=.venv/.tests-$(IFS=_; echo "${test_packages[*]}")
  [[ -f $stamp ]] && return
  echo "setup: installing for the tests: ${test_packages[*]}"
  torch=$(.venv/bin/python -c 'import torch; print(torch.__version__)')
  if .venv/bin/python -m pip install -q --disable-pip-version-check -c <(echo "torch==$torch") "${test_packages[@]}" \
      2> >(grep -v "is ignored" >&2); then
    touch "$stamp"
  else
    echo "setup: not installed: the tests that need it are skipped" >&2
  fi
}
if [[ -f $stamp ]]; then
  [[ ${1:-} != tests ]] || install_test_packages
  exit 0
fi

site_of_torch() { "$1" -c 'import importlib.util as u, os; s = u.find_spec("torch")
print(os.path.dirname(s.submodule_search_locations[0])) if s else exit(1)' 2>/dev/null; }

echo "setup: making the Python environment .venv"
python3 -m venv .venv
if [[ -n ${Torch_ROOT:-} && -f $Torch_ROOT/__init__.py ]]; then
  site=$(dirname "$Torch_ROOT")
elif ! site=$(site_of_torch python3); then
  site=
fi
if [[ -n $site ]]; then
  echo "setup: using the torch found in $site"
  .venv/bin/python -c 'import sys, sysconfig, pathlib
pathlib.Path(sysconfig.get_path("purelib"), "moh_torch.pth").write_text(sys.argv[1] + "\n")' "$site"
else
  echo "setup: downloading torch $torch_version and numpy into .venv by pip"
  .venv/bin/python -m pip install -q --disable-pip-version-check "torch==$torch_version" numpy 2>&1 | grep -v "is ignored" || true
fi
.venv/bin/python -c 'import torch' || { echo "setup: .venv/bin/python cannot import torch; remove .venv and run again" >&2; exit 1; }
touch "$stamp"
[[ ${1:-} != tests ]] || install_test_packages

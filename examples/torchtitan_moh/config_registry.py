"""torchtitan trains an exported MoH model: its Transformers backend, which looks for model classes in `transformers`, finds ours there.

    pip install moh-attention                 # beside torchtitan and its Transformers backend
    moh convert --export hf MODEL EXPORT
    cd TORCHTITAN && PYTHONPATH=MOH/examples MOH_EXPORT=EXPORT NGPU=8 MODULE=torchtitan_moh.config_registry CONFIG=moh_config ./run_train.sh

Written by reading torchtitan at b5bcd76 (21 August 2026): experiments/transformers_modeling_backend/{model,parallelize,
config_registry}.py. Run of it, on a CPU with torch 2.14.1 and transformers 5.24: this configuration, and torchtitan's backend making the
model of an export by it. Not run: the trainer, which wants GPUs. tests/python/fsdp_test.py trains an export under fully_shard, which is
what `parallelize` does to one. Read there:

- model.py takes `getattr(transformers, config.architectures[0])`, which is MohForCausalLM, and for its initialization looks for
  MohAttention, MohDecoderLayer and MohMLP beside that class: both are put there below.
- It routes attention through `ALL_ATTENTION_FUNCTIONS` by `config._attn_implementation`, as our attention module does; gates are
  multiplied afterwards. Every head is computed on GPUs then.
- It trains from scratch (its README: "Load HF weights" is further work), without the load-balance loss.
- Tensor parallelism splits heads, among which a router cannot choose: keep it at 1. Data parallelism and pipelines are as for any.
"""

import importlib
import os

import moh
import transformers
from torchtitan.experiments.transformers_modeling_backend import config_registry as backend
from torchtitan.experiments.transformers_modeling_backend import model_registry
from torchtitan.experiments.transformers_modeling_backend.configs import TransformersBackendConfig

EXPORT = os.environ["MOH_EXPORT"]

moh.transformers.register()
family = transformers.AutoConfig.from_pretrained(EXPORT).model_type.removeprefix("moh_")
module = moh.transformers.modeling(family)
prefix = moh.transformers.FAMILIES[family]
module.MohDecoderLayer = getattr(module.family, f"{prefix}DecoderLayer")
module.MohMLP = getattr(module.family, f"{prefix}MLP")
importlib.import_module("transformers").MohForCausalLM = module.MohForCausalLM  # as torchtitan looks it up


def moh_config() -> TransformersBackendConfig:
    config = backend.transformers_modeling_backend_debugmodel()
    config.hf_model = EXPORT
    config.model_spec = model_registry("full")  # every size from config.json
    return config

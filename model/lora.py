"""Low-rank adapters (LoRA, 2106.09685): train a few matrices beside frozen weights, then fold them in.

A round is a plain pipeline folder, so its adapters are merged when training ends. The adapters are peft's; what is ours
is which layers have them (all linear ones of attention and feed-forward) and named random numbers.
"""

import torch
from diffusers import WanTransformer3DModel
from peft import LoraConfig

from model.rng import derive_seed

LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2")


def add_lora(transformer: WanTransformer3DModel, rank: int, seed: int) -> None:
    """Freeze the transformer and give it adapters of this rank and scale 1; as it is, they change nothing."""
    transformer.requires_grad_(False)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(LAYERS), init_lora_weights="gaussian")
    with torch.random.fork_rng(devices=[]):  # peft draws from the global generator
        torch.manual_seed(derive_seed("lora", seed))
        transformer.add_adapter(config)


def merge_lora(transformer: WanTransformer3DModel) -> None:
    """Fold the adapters into the weights and take them off: a stock transformer again."""
    transformer.fuse_lora()
    transformer.unload_lora()

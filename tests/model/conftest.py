"""A tiny random Wan transformer and inputs for it, the same in every test."""

import pytest
import torch
from diffusers import WanTransformer3DModel

TINY = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 12,
    "freq_dim": 16,
    "ffn_dim": 48,
    "num_layers": 3,
}


@pytest.fixture
def tiny_config():
    return dict(TINY)


@pytest.fixture
def transformer():
    torch.manual_seed(0)
    model = WanTransformer3DModel(**TINY).eval()
    with torch.no_grad():  # fresh linear layers hardly attend; make every layer and frame matter
        for name, parameter in model.named_parameters():
            if name.endswith("weight") and parameter.ndim == 2:
                parameter.mul_(1.5)
    return model


@pytest.fixture
def inputs():
    """latents [2, 4, 9, 4, 4], sigmas [2, 9] that change by chunk of 3, text [2, 6, 12]."""
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 4, 9, 4, 4, generator=generator)
    sigmas = torch.rand(2, 3, generator=generator).repeat_interleave(3, dim=1)
    return latents, sigmas, torch.randn(2, 6, 12, generator=generator)

"""Random-weight Wan transformers by size, and inputs for them: what the benchmarks run on.

| size | parameters | tokens per latent frame | for |
|---|---|---|---|
| tiny | 1.3 M | 16 | the toy world's transformer |
| mid | 53 M | 512 | a CPU |
| wan1.3b | 1.4 G | 1,560 | a GPU: Wan2.1-1.3B at 832 x 480 |

512 tokens, not the 520 of a 5:4 picture, so that a chunk is whole blocks of 128 tokens: diffusers' AnyFlowFAR attends
to its own padding otherwise, and its output could not be compared.

Shapes: B batch, F latent frames, C channels, h w latent size, S text tokens, D text width.
"""

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from diffusers import ModelMixin, WanTransformer3DModel

from model.rng import torch_generator

Transformer = TypeVar("Transformer", bound=ModelMixin)


@dataclass(frozen=True)
class Size:
    """A transformer's shape and what it is fed; `config` is for `WanTransformer3DModel` and its peers alike."""

    config: dict[str, Any]
    latent_height: int
    latent_width: int
    text_tokens: int

    @property
    def tokens_per_frame(self) -> int:
        _, p_h, p_w = self.config["patch_size"]
        return (self.latent_height // p_h) * (self.latent_width // p_w)


def _config(heads: int, head_dim: int, channels: int, text_dim: int, freq_dim: int, ffn: int, layers: int) -> dict:
    return {
        "patch_size": (1, 2, 2),
        "num_attention_heads": heads,
        "attention_head_dim": head_dim,
        "in_channels": channels,
        "out_channels": channels,
        "text_dim": text_dim,
        "freq_dim": freq_dim,
        "ffn_dim": ffn,
        "num_layers": layers,
    }


SIZES = {
    "tiny": Size(_config(4, 32, 8, 64, 64, 512, 4), 8, 8, 32),
    "mid": Size(_config(8, 64, 16, 512, 256, 2048, 12), 32, 64, 64),
    "wan1.3b": Size(_config(12, 128, 16, 4096, 256, 8960, 30), 60, 104, 512),
}


def build(size: Size, device: torch.device, dtype: torch.dtype) -> WanTransformer3DModel:
    """The transformer of a size, in eval mode, with the same random weights every time."""
    torch.manual_seed(0)
    transformer = WanTransformer3DModel(**size.config)
    with torch.no_grad():  # fresh linear layers hardly attend; a wrong mask or a lost frame would not show
        for parameter in transformer.parameters():
            if parameter.ndim == 2:
                parameter.mul_(1.5)
    return place(transformer, device, dtype)


def place(transformer: Transformer, device: torch.device, dtype: torch.dtype) -> Transformer:
    """Move and cast in place, in eval mode; what its class keeps in float32 stays so, as when it is loaded."""
    for name, tensor in [*transformer.named_parameters(), *transformer.named_buffers()]:
        kept = any(module in name.split(".") for module in transformer._keep_in_fp32_modules)
        tensor.data = tensor.data.to(device, tensor.dtype if kept else dtype)
    return transformer.eval()


def latents(size: Size, batch: int, num_latents: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Gaussian stand-ins for clean latents [B, C, F, h, w]."""
    shape = batch, size.config["in_channels"], num_latents, size.latent_height, size.latent_width
    return torch.randn(shape, generator=torch_generator("benchmark", "latents")).to(device, dtype)


def text(size: Size, batch: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Gaussian stand-ins for encoded prompts [B, S, D]."""
    shape = batch, size.text_tokens, size.config["text_dim"]
    return torch.randn(shape, generator=torch_generator("benchmark", "text")).to(device, dtype)

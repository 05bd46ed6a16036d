"""A stock diffusers `WanTransformer3DModel` made causal, without a fork and without a subclass.

Notable:
- `causalize` swaps two kinds of things in place: the rope module (`FrameRope`: explicit frame positions, unbounded) and
  the attention processors. Weights, state dict keys and config stay, so `save_pretrained` writes a stock model;
  `decausalize` puts the very same stock objects back.
- Latent frames are folded into the batch. Wan patches time by 1 and everything in a block except attention works
  token by token, so [B, C, F, h, w] runs as [B*F, C, 1, h, w] with one timestep per row: noise levels per frame, at the
  cost of one modulation per frame instead of one per token. The processors unfold to L = F*S tokens around attention.
  Text stays at batch B: it is embedded and projected once per clip.
- The only thing a forward hands to attention beside the rotary table is each processor's `mask` and `slot`
  (tensors, never ints, so that torch.compile does not specialise per layer). They stay set until the next
  `causal_forward`, because gradient checkpointing recomputes blocks in backward: run backward before the next forward.

Shapes: B batch, F latent frames, C channels, h w latent size, S tokens per latent frame, L = F*S, N heads, H head size,
D width.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as functional
from diffusers import WanTransformer3DModel
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from torch import nn

from model.cache import KVCache, KVLayer

TIMESTEPS = 1000  # Wan's timestep of sigma 1


class FrameRope(nn.Module):
    """Wan's rotary embedding for explicit frame positions: bit-identical to stock inside its table, endless beyond.

    `positions` are set by `causal_forward`; forward takes the folded latents and returns stock's 2-tuple
    (cos, sin), each [1, L, 1, H].
    """

    def __init__(self, stock: WanRotaryPosEmbed, stock_processors: dict[str, Any]):
        super().__init__()
        self.stock = stock
        self.stock_processors = stock_processors
        self.positions: tuple[int, ...] = ()
        self._last: tuple[Any, tuple[torch.Tensor, torch.Tensor]] | None = None

    def forward(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        _, p_h, p_w = self.stock.patch_size
        rows, columns = latents.shape[-2] // p_h, latents.shape[-1] // p_w
        key = (self.positions, rows, columns, latents.device)
        if self._last is None or self._last[0] != key:  # a chunk's denoising steps share one table
            self._last = (key, rotary_table(self.stock, self.positions, rows, columns, latents.device))
        return self._last[1]


def rotary_table(
    stock: WanRotaryPosEmbed, positions: Sequence[int], rows: int, columns: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """(cos, sin), each float32 [1, L, 1, H], for frames at `positions` of rows x columns tokens, in stock's layout."""
    table = []
    for dim, places in (
        (stock.t_dim, torch.tensor(positions)),
        (stock.h_dim, torch.arange(rows)),
        (stock.w_dim, torch.arange(columns)),
    ):
        # float64 phases as in stock, so a position far along keeps its precision
        table.append(get_1d_rotary_pos_embed(dim, places, use_real=True, freqs_dtype=torch.float64))
    shape_FhwH = (len(positions), rows, columns, -1)
    cos_sin = []
    for t, y, x in zip(*table, strict=True):
        phases = [t[:, None, None].expand(shape_FhwH), y[None, :, None].expand(shape_FhwH), x.expand(shape_FhwH)]
        cos_sin.append(torch.cat(phases, dim=-1).flatten(0, 2)[None, :, None].to(device))
    return cos_sin[0], cos_sin[1]


def rotate(x_BLNH: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn each pair of neighbouring features by its phase: stock's arithmetic as one complex product.

    Five times as fast on CPU as stock's strided writes, forward and backward, and equal to the bit there.
    """
    pairs = torch.view_as_complex(x_BLNH.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * torch.complex(cos[..., 0::2], sin[..., 1::2])).flatten(-2).type_as(x_BLNH)


class CausalSelfAttention:
    """Processor of one self-attention layer over all frames of a clip: [past | this forward], masked in training."""

    _attention_backend = None
    _parallel_config = None

    def __init__(self) -> None:
        self.mask: torch.Tensor | None = None
        self.slot: KVLayer | None = None

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        assert rotary_emb is not None
        num_tokens = rotary_emb[0].shape[1]
        x_BLD = hidden_states.reshape(-1, num_tokens, hidden_states.shape[-1])
        q, k, v = _project(attn, x_BLD, x_BLD)
        q, k = rotate(q, *rotary_emb), rotate(k, *rotary_emb)
        if self.slot is not None:
            self.slot.new_k, self.slot.new_v = k, v
            past = self.slot.get()
            if past is not None:
                k, v = torch.cat([past[0], k], dim=1), torch.cat([past[1], v], dim=1)
        return _finish(attn, _attend(q, k, v, self.mask), hidden_states)


class CausalCrossAttention:
    """Processor of one cross-attention layer: a clip's L tokens look at its text once, not frame by frame."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        assert encoder_hidden_states is not None
        x_BLD = hidden_states.reshape(encoder_hidden_states.shape[0], -1, hidden_states.shape[-1])
        q, k, v = _project(attn, x_BLD, encoder_hidden_states)
        return _finish(attn, _attend(q, k, v, None), hidden_states)


def _project(attn: Any, x_BLD: torch.Tensor, source: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries of x, keys and values of what it looks at, each [B, its length, N, H]."""
    q = attn.norm_q(attn.to_q(x_BLD)).unflatten(-1, (attn.heads, -1))
    k = attn.norm_k(attn.to_k(source)).unflatten(-1, (attn.heads, -1))
    v = attn.to_v(source).unflatten(-1, (attn.heads, -1))
    return q, k, v


def _attend(q_BLNH: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    q, k, v = q_BLNH.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


def _finish(attn: Any, out_BLNH: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
    return attn.to_out[1](attn.to_out[0](out_BLNH.flatten(2, 3))).reshape(hidden_states.shape)


def causalize(transformer: WanTransformer3DModel) -> WanTransformer3DModel:
    """Swap the rope module and the attention processors in place; returns the same transformer. Doing it twice is fine.

    Raises ValueError for a model this cannot serve: one that patches time, or one with image conditioning.
    """
    if isinstance(transformer.rope, FrameRope):
        return transformer
    config = transformer.config
    if config.patch_size[0] != 1:
        raise ValueError(f"cannot causalize: patch_size is {tuple(config.patch_size)}, its first number must be 1")
    if config.image_dim is not None or config.added_kv_proj_dim is not None:
        raise ValueError("cannot causalize: the transformer is conditioned on images (image_dim, added_kv_proj_dim)")
    stock_processors = dict(transformer.attn_processors)
    transformer.rope = FrameRope(transformer.rope, stock_processors)
    transformer.set_attn_processor(
        {name: CausalSelfAttention() if ".attn1." in name else CausalCrossAttention() for name in stock_processors}
    )
    return transformer


def decausalize(transformer: WanTransformer3DModel) -> WanTransformer3DModel:
    """Undo `causalize`: the stock rope and processors themselves come back. A stock transformer is left alone."""
    if isinstance(transformer.rope, FrameRope):
        rope = transformer.rope
        transformer.rope = rope.stock
        transformer.set_attn_processor(dict(rope.stock_processors))  # the setter empties the dict it gets
    return transformer


def causal_forward(
    transformer: WanTransformer3DModel,
    latents_BCFHW: torch.Tensor,
    sigmas_BF: torch.Tensor,
    text_BSD: torch.Tensor,
    *,
    positions_F: Sequence[int],
    mask: torch.Tensor | None = None,
    cache: KVCache | None = None,
) -> torch.Tensor:
    """The velocity v [B, C, F, h, w] of noisy latents, with a noise level (0..1) per frame.

    `positions_F`: the frames' absolute positions (ints on the host; they may start anywhere, repeat, pass 1024).
    `mask`: [L, L] bool, True = may attend. `cache`: its past is attended to as well, and what this forward produced
    is left in it to be committed; the past itself is not touched. Raises ValueError when the transformer is not
    causalized or the shapes disagree.
    """
    rope = transformer.rope
    if not isinstance(rope, FrameRope):
        raise ValueError("the transformer is not causal: call causalize(transformer) first")
    B, C, F, h, w = latents_BCFHW.shape
    if sigmas_BF.shape != (B, F) or len(positions_F) != F or text_BSD.shape[0] != B:
        raise ValueError(
            f"latents {tuple(latents_BCFHW.shape)} need sigmas {(B, F)}, {F} positions and text of batch {B}; "
            f"got sigmas {tuple(sigmas_BF.shape)}, {len(positions_F)} positions, text {tuple(text_BSD.shape)}"
        )
    rope.positions = tuple(int(p) for p in positions_F)
    for index, block in enumerate(transformer.blocks):
        processor = block.attn1.processor
        processor.mask = mask
        processor.slot = None if cache is None else cache.layers[index]
    folded = latents_BCFHW.transpose(1, 2).reshape(B * F, C, 1, h, w)
    timesteps = (sigmas_BF * TIMESTEPS).reshape(B * F)
    out = transformer(folded, timesteps, text_BSD, return_dict=False)[0]
    return out.reshape(B, F, -1, h, w).transpose(1, 2)

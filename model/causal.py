"""A stock diffusers `WanTransformer3DModel` made causal, without a fork and without a subclass.

Notable:
- `causalize` swaps two kinds of things in place: the rope module (`rope.FrameRope`) and the attention processors
  (`attention`). Weights, state dict keys and config stay, so `save_pretrained` writes a stock model and LoRA adapters
  find their layers; `decausalize` puts the very same stock objects back.
- Latent frames are folded into the batch. Wan patches time by 1 and everything in a block except attention works
  token by token, so [B, C, F, h, w] runs as [B*F, C, 1, h, w] with one timestep per row: noise levels per frame, at the
  cost of one modulation per frame instead of one per token. The processors unfold to L = F*S tokens around attention.
  Text stays at batch B: it is embedded and projected once per clip.
- Gradient checkpointing recomputes blocks in backward, when later forwards may have come by: each block is recomputed
  with the mask and the past that its own forward had.

Shapes: B batch, F latent frames, C channels, h w latent size, S tokens per latent frame (or text tokens), L = F*S,
N heads, H head size, D width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from torch.utils.checkpoint import checkpoint

from model.attention import CausalCrossAttention, CausalSelfAttention, mask_for
from model.cache import KVCache, KVLayer, TextKV
from model.masks import ChunkMask, Context, Reach
from model.rope import FrameRope, advance

TIMESTEPS = 1000  # Wan's timestep of sigma 1


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


def _rope(transformer: WanTransformer3DModel) -> FrameRope:
    if not isinstance(transformer.rope, FrameRope):
        raise ValueError("the transformer is not causal: call causalize(transformer) first")
    return transformer.rope


def new_cache(
    transformer: WanTransformer3DModel, context: Context = Context(), *, relative_sink: bool = False
) -> KVCache:
    """An empty cache for this transformer; with `relative_sink` the sink travels before the window."""
    stock = _rope(transformer).stock
    return KVCache(
        len(transformer.blocks), context, (lambda k, frames: advance(stock, k, frames)) if relative_sink else None
    )


def causal_forward(
    transformer: WanTransformer3DModel,
    latents_BCFHW: torch.Tensor,
    sigmas_BF: torch.Tensor,
    text_BSD: torch.Tensor,
    *,
    positions_F: Sequence[int],
    mask: ChunkMask | None = None,
    cache: KVCache | None = None,
) -> torch.Tensor:
    """The velocity v [B, C, F, h, w] of noisy latents, with a noise level (0..1) per frame.

    `positions_F`: the frames' absolute positions (ints on the host; they may start anywhere, repeat, pass 1024).
    `mask`: what sees what among these frames, and whether history is routed; None: everything sees everything.
    `cache`: its past is attended to as well, by every frame, and what this forward produced is left in it to be
    committed; the past itself is not touched. Raises ValueError when the transformer is not causalized, the shapes
    disagree, or both a mask and a cache with a past are given.
    """
    rope = _rope(transformer)
    B, C, F, h, w = latents_BCFHW.shape
    if sigmas_BF.shape != (B, F) or len(positions_F) != F or text_BSD.shape[0] != B:
        raise ValueError(
            f"latents {tuple(latents_BCFHW.shape)} need sigmas {(B, F)}, {F} positions and text of batch {B}; "
            f"got sigmas {tuple(sigmas_BF.shape)}, {len(positions_F)} positions, text {tuple(text_BSD.shape)}"
        )
    if mask is not None and mask.length != F:
        raise ValueError(f"the mask is for {mask.length} frames, the latents have {F}")
    if mask is not None and cache is not None and cache.chunks:
        raise ValueError("a mask speaks of the frames of one forward: give it none, or a cache without a past")
    _, p_h, p_w = transformer.config.patch_size
    S = (h // p_h) * (w // p_w)
    slots: Sequence[KVLayer | None] = [None] * len(transformer.blocks)
    texts: Sequence[TextKV | None] = [None] * len(transformer.blocks)
    routing = held = None
    if cache is not None:
        heads, size = transformer.config.num_attention_heads, transformer.config.attention_head_dim
        texts = cache.text_layers(text_BSD)
        slots = cache.begin(F, S, latents_BCFHW.new_empty(B, heads, size))
        routing = _routing([cache.reach()], cache.context)
    if mask is not None:
        routing = _routing(mask.reaches(S), mask.context)
        held = mask_for(mask, S, latents_BCFHW.device)
    folded = latents_BCFHW.transpose(1, 2).reshape(B * F, C, 1, h, w)
    timesteps = (sigmas_BF * TIMESTEPS).reshape(B * F)
    checkpointing = transformer._gradient_checkpointing_func
    try:
        rope.positions = tuple(int(p) for p in positions_F)
        transformer._gradient_checkpointing_func = _checkpoint
        for block, slot, text in zip(transformer.blocks, slots, texts, strict=True):
            _set(block, held, slot, routing, text)
        out = transformer(folded, timesteps, text_BSD, return_dict=False)[0]
    finally:  # nothing is left that keeps a cache alive, or that a later call could mistake for its own
        rope.positions = ()
        transformer._gradient_checkpointing_func = checkpointing
        for block in transformer.blocks:
            _set(block)
    return out.reshape(B, F, -1, h, w).transpose(1, 2)


def _routing(reaches: list[Reach], context: Context) -> tuple[list[Reach], int] | None:
    """Reaches and k of history routing, None where there is nothing to pick: dense attention then is the same."""
    k = context.routed_chunks
    return (reaches, k) if k is not None and any(len(reach.history) > k for reach in reaches) else None


def _set(block: Any, mask: Any = None, slot: Any = None, routing: Any = None, text: Any = None) -> None:
    """Hand a forward's context to the processors of a block."""
    processor = block.attn1.processor
    processor.mask, processor.slot, processor.routing = mask, slot, routing
    block.attn2.processor.slot = text


def _checkpoint(block: Any, *args: Any) -> Any:
    """A block under gradient checkpointing, recomputed with what its processor held in this forward."""
    processor = block.attn1.processor
    held = processor.mask, processor.slot, processor.routing

    def run(*args: Any) -> Any:
        before = processor.mask, processor.slot, processor.routing
        try:
            _set(block, *held)
            return block(*args)
        finally:
            _set(block, *before)

    return checkpoint(run, *args, use_reentrant=False)

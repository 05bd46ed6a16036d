"""Attention of a causal transformer: its two processors, and the masked attention behind them.

A mask is attended to by the fastest exact way on the device: flex attention, compiled, on a GPU; elsewhere one unmasked
call per chunk on the keys it sees (`benchmarks/attention.py`: flex has no backward on CPU, and a dense mask costs
time and memory for what it hides).

What a forward hands to a processor stands in the processor's fields while it runs. They hold tensors and nothing that
differs by layer, so that torch.compile does not specialise on the layer. diffusers sets `_attention_backend` and
`_parallel_config` on every processor; they are not used here.

Shapes: B batch, L tokens, N heads, H head size, D width.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as functional
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from model.cache import KVLayer, TextKV
from model.masks import ChunkMask, Reach, Run, Spans
from model.rope import rotate
from model.routing import routed_attention


class CausalSelfAttention:
    """Processor of one self-attention layer over all frames of a clip: [past | this forward].

    `mask`: what sees what within this forward, None for everything. `slot`: the layer's past. `routing`: reaches and k
    of history routing.
    """

    _attention_backend = None
    _parallel_config = None

    def __init__(self) -> None:
        self.mask: BlockMask | Spans | None = None
        self.slot: KVLayer | None = None
        self.routing: tuple[Sequence[Reach], int] | None = None

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
        k, v = _keys(attn, x_BLD)
        q, k = rotate(_queries(attn, x_BLD), *rotary_emb), rotate(k, *rotary_emb)
        if self.slot is not None:
            k, v = self.slot.update(k, v)
        if self.routing is not None:
            out = routed_attention(q, k, v, *self.routing)
        elif self.mask is not None:
            out = masked_attention(q, k, v, self.mask)
        else:
            out = attention(q, k, v)
        return _finish(attn, out, hidden_states)


class CausalCrossAttention:
    """Processor of one cross-attention layer: a clip's L tokens look at its text once, not frame by frame.

    `slot`: where the text's keys and values are kept from one forward to the next.
    """

    _attention_backend = None
    _parallel_config = None

    def __init__(self) -> None:
        self.slot: TextKV | None = None

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
        if self.slot is None or torch.is_grad_enabled():
            k, v = _keys(attn, encoder_hidden_states)
        elif self.slot.k is None or self.slot.v is None:
            k, v = self.slot.k, self.slot.v = _keys(attn, encoder_hidden_states)
        else:
            k, v = self.slot.k, self.slot.v
        return _finish(attn, attention(_queries(attn, x_BLD), k, v), hidden_states)


def _queries(attn: Any, x_BLD: torch.Tensor) -> torch.Tensor:
    return attn.norm_q(attn.to_q(x_BLD)).unflatten(-1, (attn.heads, -1))


def _keys(attn: Any, x_BLD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values, each [B, L, N, H]."""
    k, v = attn.norm_k(attn.to_k(x_BLD)), attn.to_v(x_BLD)
    return k.unflatten(-1, (attn.heads, -1)), v.unflatten(-1, (attn.heads, -1))


def _finish(attn: Any, out_BLNH: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
    return attn.to_out[1](attn.to_out[0](out_BLNH.flatten(2, 3))).reshape(hidden_states.shape)


def attention(q_BLNH: torch.Tensor, k_BMNH: torch.Tensor, v_BMNH: torch.Tensor) -> torch.Tensor:
    """Every query attends to every key: [B, L, N, H]."""
    q, k, v = (x.transpose(1, 2) for x in (q_BLNH, k_BMNH, v_BMNH))
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def mask_for(mask: ChunkMask, tokens_per_frame: int, device: torch.device) -> BlockMask | Spans:
    """A mask as `masked_attention` takes it: the form that is fastest on the device."""
    if device.type == "cuda":
        return mask.block_mask(tokens_per_frame, device)
    return mask.spans(tokens_per_frame)


def masked_attention(
    q_BLNH: torch.Tensor, k_BLNH: torch.Tensor, v_BLNH: torch.Tensor, mask: BlockMask | Spans
) -> torch.Tensor:
    """Queries attend to the keys that the mask lets them see: [B, L, N, H]."""
    if isinstance(mask, BlockMask):
        q, k, v = (x.transpose(1, 2) for x in (q_BLNH, k_BLNH, v_BLNH))
        return _compiled_flex()(q, k, v, block_mask=mask).transpose(1, 2)
    out = [
        attention(q_BLNH[:, start:stop], _select(k_BLNH, keys), _select(v_BLNH, keys)) for (start, stop), keys in mask
    ]
    return torch.cat(out, dim=1)


def _select(x_BLNH: torch.Tensor, runs: Sequence[Run]) -> torch.Tensor:
    parts = [x_BLNH[:, start:stop] for start, stop in runs]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


@cache
def _compiled_flex() -> Any:
    # With dynamic shapes, torch 2.13 compiles a second mask into one that hides and shows the wrong keys, silently.
    # With fullgraph, too many masks (torch._dynamo.config.recompile_limit) are an error, not an uncompiled dense one.
    return torch.compile(flex_attention, dynamic=False, fullgraph=True)

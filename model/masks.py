"""Which tokens may see which: dense boolean attention masks, True where a query (row) may attend to a key (column).

Training sees a whole clip at once and needs a mask; a cached rollout needs none, because what it must not see is not
in its cache. The window is counted in past chunks on both sides, so a model is trained on the context it will have.

Shapes: F latent frames, S tokens per latent frame, L = F*S.
"""

from functools import lru_cache

import torch


def block_causal(num_frames: int, chunk: int, window_chunks: int | None = None) -> torch.Tensor:
    """Frame mask [F, F]: a frame sees its whole chunk and the past chunks, at most `window_chunks` of them.

    None keeps the whole past; 0 leaves each chunk alone. A last chunk may be shorter. Raises ValueError on sizes below
    1 or a negative window.
    """
    if num_frames < 1 or chunk < 1:
        raise ValueError(f"num_frames and chunk must be at least 1, not {num_frames} and {chunk}")
    if window_chunks is not None and window_chunks < 0:
        raise ValueError(f"window_chunks must be at least 0 (or None for the whole past), not {window_chunks}")
    index_F = torch.arange(num_frames) // chunk
    distance_FF = index_F[:, None] - index_F[None, :]
    mask_FF = distance_FF >= 0
    return mask_FF if window_chunks is None else mask_FF & (distance_FF <= window_chunks)


def expand_to_tokens(mask_FF: torch.Tensor, tokens_per_frame: int) -> torch.Tensor:
    """Token mask [L, L] of a frame mask [F, F]: tokens see what their frames see."""
    return mask_FF.repeat_interleave(tokens_per_frame, 0).repeat_interleave(tokens_per_frame, 1)


@lru_cache(maxsize=8)
def token_mask(
    num_frames: int, chunk: int, window_chunks: int | None, tokens_per_frame: int, device: torch.device
) -> torch.Tensor:
    """The block-causal token mask [L, L] on a device, built once per shape. Treat it as read-only."""
    return expand_to_tokens(block_causal(num_frames, chunk, window_chunks), tokens_per_frame).to(device)

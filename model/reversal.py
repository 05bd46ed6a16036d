"""Turning a clip backwards, in pixels: the step that makes a corrective trajectory out of a drifting rollout.

Why pixels and not latents: a causal video VAE maps 1 + r*k frames to 1 + k latents, so flipping latents is not flipping
time (their first latent holds one frame, all others r). The reversed frames are encoded again. Source: BAgger,
arXiv:2512.12080, §3; frames are [T, H, W, 3] (T pixel frames).
"""

import numpy as np


def reverse_frames(frames: np.ndarray) -> np.ndarray:
    """The frames [T, ...] in reverse order, as a contiguous copy: torch.from_numpy takes no negative strides."""
    if frames.ndim == 0:
        raise ValueError("frames need a time axis, saw a scalar")
    return frames[::-1].copy(order="C")

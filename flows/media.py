"""The columns that every clip has in its table: shape, mp4, latents and their digests; and clips as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from store.digest import bytes_sha256
from store.latents import pack_latents
from store.pictures import contact_sheet
from store.video import decode_video, encode_video


def media_columns(frames: np.ndarray, fps: float, crf: int, latents: np.ndarray, vae_digest: str) -> dict[str, Any]:
    """Columns of frames uint8 [T,H,W,3] and latents [C,F,h,w], as the tables seed, rollouts and clips share them."""
    video = encode_video(frames, fps, crf)
    data, shape = pack_latents(latents)
    return {
        "fps": fps, "num_frames": len(frames), "height": frames.shape[1], "width": frames.shape[2],
        "video": video, "video_sha256": bytes_sha256(video), "frames_sha256": bytes_sha256(frames.tobytes()),
        "latents": data, "latents_shape": shape, "vae_digest": vae_digest,
    }  # fmt: skip


def sheet_of(videos: Sequence[bytes], prompts: Sequence[str]) -> bytes:
    """Contact sheet (PNG) of stored videos, a row each with its prompt."""
    return contact_sheet([decode_video(video) for video in videos], labels=list(prompts))

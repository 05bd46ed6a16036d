"""Whether a row's video and latents are what the row says: bytes, digests, shapes, and with `decode` the frames.

Notable: nothing here raises for a bad blob; what is wrong comes back as words. The digest of the frames before encoding
(`frames_sha256`) cannot be checked, as mp4 is lossy.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from store.digest import bytes_sha256
from store.latents import unpack_latents

FPS_TOLERANCE = 0.01  # relative; ffmpeg prints two decimals

Problem = tuple[str, str]  # (check, what was seen)


def problems(row: Mapping[str, Any], decode: bool = True) -> list[Problem]:
    """What is wrong with the blobs of a row of seed, rollouts or clips; an empty list if nothing is."""
    return [*video_problems(row, decode), *latents_problems(row)]


def video_problems(row: Mapping[str, Any], decode: bool = True) -> list[Problem]:
    """Checks `missing`, `digest`, `undecodable` and `media` of a row's video."""
    video = row["video"]
    if not video:
        return [("missing", "video has no bytes")]
    if (seen := bytes_sha256(video)) != row["video_sha256"]:
        return [("digest", f"video of {len(video)} bytes has sha256 {seen}, the row says {row['video_sha256']}")]
    return _decoding_problems(row) if decode else []


def _decoding_problems(row: Mapping[str, Any]) -> list[Problem]:
    from store.video import VideoError, decode_video, probe

    try:
        frames, info = decode_video(row["video"]), probe(row["video"])
    except VideoError as error:
        return [("undecodable", str(error))]
    found = []
    expected = (row["num_frames"], row["height"], row["width"])
    if frames.shape[:3] != expected:
        found.append(
            ("media", f"video is {list(frames.shape[:3])} frames, height, width; the row says {list(expected)}")
        )
    if info.fps is None or not math.isclose(info.fps, row["fps"], rel_tol=FPS_TOLERANCE, abs_tol=FPS_TOLERANCE):
        found.append(("media", f"video runs at {info.fps} frames a second; the row says {row['fps']}"))
    return found


def latents_problems(row: Mapping[str, Any]) -> list[Problem]:
    """Checks `missing` and `latents` of a row's latents."""
    data, shape = row["latents"], row["latents_shape"]
    if not data:
        return [("missing", "latents have no bytes")]
    if len(shape) != 4 or min(shape) < 1:
        return [("latents", f"shape is {shape}; expected [C,F,h,w]")]
    if len(data) != (size := 2 * math.prod(shape)):
        return [("latents", f"{len(data)} bytes; shape {shape} needs {size}")]
    if count := int((~np.isfinite(unpack_latents(data, shape))).sum()):
        return [("latents", f"{count} values are not finite")]
    return []

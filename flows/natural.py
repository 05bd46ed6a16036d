"""Stage `natural`: how much real seed clips change by themselves; the unit in which drift is measured.

Real clips change more in a long time than in a short one, so there are two units: `clip`, for rollouts of the training
length, from training clips, and `evaluation`, for long rollouts, from the held-out clips that are as long.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from flows import paths
from flows.command import command, say
from flows.params import Params
from flows.stage import Stage, write_json
from model import drift, features
from store.digest import digest
from store.table import read_manifest, read_table
from store.video import decode_video

FEWEST_LONG = 8
MOST_CLIPS = 512  # quantiles of a few hundred clips are steady


def main(params: Params) -> None:
    seed = read_manifest(paths.manifest("seed")).digest
    with Stage(
        "natural",
        params={"clip": params.clip, "long": params.evaluation.num_chunks, "scorer": drift.SCORER},
        inputs={"seed": seed},
    ) as stage:
        clips = read_table(paths.STORE, "seed", ["clip_id", "video", "num_frames"], "split = 'train'").slice(
            0, MOST_CLIPS
        )
        prefix, length, longest = lengths(params)
        with ThreadPoolExecutor(params.resources.workers) as pool:
            curves = list(pool.map(lambda v: features.curves(decode_video(v)[:length]), clips["video"].to_pylist()))
            heldout = read_table(paths.STORE, "seed", ["video"], f"split = 'heldout' AND num_frames >= {longest}")
            videos = heldout["video"].to_pylist()
            long_curves = list(pool.map(lambda v: features.curves(decode_video(v, max_frames=longest)), videos))
        clip = drift.natural_variation(curves, prefix)
        if len(long_curves) < FEWEST_LONG:
            say(f"natural: {len(long_curves)} held-out clips are {longest} frames long, {FEWEST_LONG} are needed: "
                "evaluation is measured in the unit of short clips")  # fmt: skip
        long = drift.natural_variation(long_curves, prefix) if len(long_curves) >= FEWEST_LONG else clip
        write_json(paths.NATURAL, {"clip": clip, "evaluation": long})
        units = {"natural": digest(read_natural("clip")), "natural_evaluation": digest(read_natural("evaluation"))}
        stage.outputs = units | {"clips": len(curves), "long_clips": len(long_curves)}


def lengths(params: Params) -> tuple[int, int, int]:
    """Pixel frames of the true prefix, of a training clip and of an evaluation rollout, with the base's VAE."""
    ratio = temporal_ratio()
    chunk, clip = params.clip.chunk_latents, params.clip.num_latents
    return tuple(1 + ratio * (n - 1) for n in (chunk, clip, chunk * params.evaluation.num_chunks))  # type: ignore[return-value]


def read_natural(which: Literal["clip", "evaluation"]) -> dict[str, Any]:
    """The unit of drift for clips of the training length, or of the evaluation's."""
    unit: dict[str, Any] = json.loads(paths.NATURAL.read_text())[which]
    return unit


def temporal_ratio() -> int:
    """The base VAE's compression in time, without loading it (and diffusers)."""
    return int(json.loads((paths.BASE / "vae" / "config.json").read_text()).get("scale_factor_temporal", 4))


if __name__ == "__main__":
    command(main)

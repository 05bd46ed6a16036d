"""Stage `natural`: how much real seed clips change by themselves; the unit in which drift is measured.

Real clips change more in a long time than in a short one, so there are two units: `clip`, for rollouts of the training
length, from training clips, and `evaluation`, for long rollouts, from the held-out clips that are as long. Beside them
stands what frames of the seed clips look like, for the naturalness score.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from flows import paths
from flows.command import command, say
from flows.params import Params
from flows.progress import progress_bar
from flows.stage import Stage, write_json
from model import drift, features, naturalness
from store.digest import digest
from store.table import read_manifest, read_table
from store.video import decode_video

FEWEST_LONG = 8
MOST_CLIPS = 512  # quantiles of a few hundred clips are steady
FRAMES_A_CLIP = 8  # evenly spaced, of which naturalness is fitted


class NaturalError(ValueError):
    """data/natural.json is not what this stage writes."""


def main(params: Params) -> None:
    seed = read_manifest(paths.manifest("seed")).digest
    with Stage(
        "natural",
        params={"clip": params.clip, "long": params.evaluation.num_chunks, "scorer": drift.SCORER,
                "naturalness": naturalness.VERSION},
        inputs={"seed": seed},
    ) as stage:  # fmt: skip
        clips = read_table(paths.STORE, "seed", ["clip_id", "video", "num_frames"], "split = 'train'").slice(
            0, MOST_CLIPS
        )
        prefix, length, longest = lengths(params)

        longs = read_table(paths.STORE, "seed", ["video"], f"split = 'heldout' AND num_frames >= {longest}")
        with (
            progress_bar(len(clips) + len(longs), stage.label, "clip") as bar,
            ThreadPoolExecutor(params.resources.workers) as pool,
        ):

            def short_clip(video: bytes) -> tuple[dict[str, np.ndarray], np.ndarray]:
                frames = decode_video(video)[:length]
                chosen = frames[np.linspace(0, len(frames) - 1, min(FRAMES_A_CLIP, len(frames))).round().astype(int)]
                found = features.curves(frames), naturalness.features(features.luma(chosen))
                bar.update()
                return found

            def long_clip(video: bytes) -> dict[str, np.ndarray]:
                found = features.curves(decode_video(video, max_frames=longest))
                bar.update()
                return found

            short = list(pool.map(short_clip, clips["video"].to_pylist()))
            long_curves = list(pool.map(long_clip, longs["video"].to_pylist()))
        clip = drift.fit([curves for curves, _ in short], prefix)
        if len(long_curves) < FEWEST_LONG:
            say(f"natural: {len(long_curves)} held-out clips are {longest} frames long, {FEWEST_LONG} are needed: "
                "evaluation is measured in the unit of short clips")  # fmt: skip
        long = drift.fit(long_curves, prefix) if len(long_curves) >= FEWEST_LONG else clip
        looks = np.concatenate([one for _, one in short])
        fitted = naturalness.fit(looks, params.video.height, params.video.width)
        units = {"clip": clip.to_json(), "evaluation": long.to_json(), "naturalness": fitted}
        write_json(paths.NATURAL, units)
        counts = {"clips": len(short), "long_clips": len(long_curves)}
        stage.outputs = {"natural": digest(units["clip"]), "natural_evaluation": digest(units["evaluation"]),
                         "naturalness": digest(fitted), **counts}  # fmt: skip


def lengths(params: Params) -> tuple[int, int, int]:
    """Pixel frames of the true prefix, of a training clip and of an evaluation rollout, with the base's VAE."""
    ratio = temporal_ratio()
    chunk, clip = params.clip.chunk_latents, params.clip.num_latents
    return tuple(1 + ratio * (n - 1) for n in (chunk, clip, chunk * params.evaluation.num_chunks))  # type: ignore[return-value]


def read_natural(which: str, path: Path | None = None) -> drift.Natural:
    """The unit of drift for clips of the training length (`clip`), or of the evaluation's (`evaluation`)."""
    return drift.natural_of(_read(which, path))


def read_naturalness(path: Path | None = None) -> dict[str, Any]:
    """What seed frames look like, for `model.naturalness.score`."""
    return _read("naturalness", path)


def natural_digest(which: str) -> str:
    """Digest of one of the three."""
    return digest(_read(which))


def _read(which: str, path: Path | None = None) -> dict[str, Any]:
    path = path or paths.NATURAL
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))[which]
    except (KeyError, TypeError, ValueError) as error:
        raise NaturalError(f"{path} holds no unit {which!r} ({error!r}); run `dvc repro --force natural`") from None
    return found


def temporal_ratio() -> int:
    """The base VAE's compression in time, without loading it (and diffusers)."""
    return int(json.loads((paths.BASE / "vae" / "config.json").read_text()).get("scale_factor_temporal", 4))


if __name__ == "__main__":
    command(main)

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
from store.table import open_table, read_manifest, read_table
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
        prefix, length, longest = lengths(params)
        table = open_table(paths.STORE, "seed")
        clips = ids("split = 'train'")[:MOST_CLIPS]
        longs = ids(f"split = 'heldout' AND num_frames >= {longest}")
        # Too small a picture has no naturalness; drift needs none.
        looked_at = min(params.video.height, params.video.width) >= naturalness.MIN_SIDE
        with (
            progress_bar(len(clips) + len(longs), stage.label, "clip") as bar,
            ThreadPoolExecutor(params.resources.workers) as pool,
        ):

            def video(clip_id: str) -> bytes:
                # One by one: all videos of a large seed are more than memory holds.
                return bytes(read_table(table, "seed", ["video"], ids=[clip_id])["video"][0].as_py())

            def short_clip(clip_id: str) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
                frames = decode_video(video(clip_id))[:length]
                chosen = frames[np.linspace(0, len(frames) - 1, min(FRAMES_A_CLIP, len(frames))).round().astype(int)]
                found = features.curves(frames), naturalness.features(features.luma(chosen)) if looked_at else None
                bar.update()
                return found

            def long_clip(clip_id: str) -> dict[str, np.ndarray]:
                found = features.curves(decode_video(video(clip_id), max_frames=longest))
                bar.update()
                return found

            short = list(pool.map(short_clip, clips))
            long_curves = list(pool.map(long_clip, longs))
        clip = drift.fit([curves for curves, _ in short], prefix)
        if len(long_curves) < FEWEST_LONG:
            say(f"natural: {len(long_curves)} held-out clips are {longest} frames long, {FEWEST_LONG} are needed: "
                "evaluation is measured in the unit of short clips")  # fmt: skip
        long = drift.fit(long_curves, prefix) if len(long_curves) >= FEWEST_LONG else clip
        fitted = None
        if looked_at:
            looks = np.concatenate([one for _, one in short if one is not None])
            fitted = naturalness.fit(looks, params.video.height, params.video.width)
        else:
            say(f"natural: frames of {params.video.height}x{params.video.width} have no naturalness, which needs "
                f"{naturalness.MIN_SIDE} pixels a side; all else is measured")  # fmt: skip
        units = {"clip": clip.to_json(), "evaluation": long.to_json(), "naturalness": fitted}
        write_json(paths.NATURAL, units)
        counts = {"clips": len(short), "long_clips": len(long_curves)}
        stage.outputs = {"natural": digest(units["clip"]), "natural_evaluation": digest(units["evaluation"]),
                         "naturalness": digest(fitted), **counts}  # fmt: skip


def ids(where: str) -> list[str]:
    """The seed clips for which `where` holds, in the table's order."""
    return list(read_table(paths.STORE, "seed", ["clip_id"], where)["clip_id"].to_pylist())


def lengths(params: Params) -> tuple[int, int, int]:
    """Pixel frames of the true prefix, of a training clip and of an evaluation rollout, with the base's VAE."""
    ratio = temporal_ratio()
    chunk, clip = params.clip.chunk_latents, params.clip.num_latents
    return tuple(1 + ratio * (n - 1) for n in (chunk, clip, chunk * params.evaluation.num_chunks))  # type: ignore[return-value]


def read_natural(which: str, path: Path | None = None) -> drift.Natural:
    """The unit of drift for clips of the training length (`clip`), or of the evaluation's (`evaluation`)."""
    return drift.natural_of(_read(which, path))


def read_naturalness(path: Path | None = None) -> dict[str, Any] | None:
    """What seed frames look like, for `model.naturalness.score`; None where they are too small for it."""
    return _read("naturalness", path) or None


def natural_digest(which: str) -> str:
    """Digest of one of the three."""
    return digest(_read(which))


def _read(which: str, path: Path | None = None) -> Any:
    path = path or paths.NATURAL
    try:
        found = json.loads(path.read_text(encoding="utf-8"))[which]
    except FileNotFoundError:
        raise NaturalError(
            f"{path} is not there; make it with `dvc repro natural` or fetch it with `dvc pull`"
        ) from None
    except (KeyError, TypeError, ValueError) as error:
        raise NaturalError(f"{path} holds no unit {which!r} ({error!r}); run `dvc repro --force natural`") from None
    return found


def temporal_ratio() -> int:
    """The base VAE's compression in time, without loading it (and diffusers)."""
    return int(json.loads((paths.BASE / "vae" / "config.json").read_text()).get("scale_factor_temporal", 4))


if __name__ == "__main__":
    command(main)

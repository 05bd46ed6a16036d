"""Stage `seed`: a folder of videos and captions becomes the sealed table `seed`, clip by clip, with latents.

Every video that gives no clip is named with its reason in data/ingest_report.csv; the stage fails when none is left.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from diffusers import WanPipeline

from flows import paths
from flows.batches import chunked, per_thread, publish_table, run_batches
from flows.command import command, say
from flows.media import media_columns
from flows.params import Params
from flows.stage import Stage, pick_device, torch_workers
from model.pipeline import encode_frames, load_pipeline, num_frames, read_record
from store.digest import canonical_json, digest, file_sha256, id_of, make_id
from store.embedding import embeddings
from store.folder import SourceClip, read_folder
from store.schema import table_schema
from store.table import WorkingTable
from store.video import VideoError, decode_video


class SeedError(ValueError):
    """A source of seed clips that leaves nothing to train on or to evaluate with."""


def main(params: Params) -> None:
    source = read_folder(params.seed.source, params.seed.heldout)
    vae_digest = read_record(paths.BASE)["digests"]["components"]["vae"]
    sources = {clip.file: file_sha256(clip.path) for clip in source.clips}
    identity = [
        [clip.file, sources[clip.file], clip.caption, clip.split, clip.license, clip.extra] for clip in source.clips
    ]
    with Stage(
        "seed",
        params={"seed": params.seed.model_dump(exclude={"source"}), "video": params.video, "clip": params.clip},
        inputs={"clips": digest(identity), "vae": vae_digest},
    ) as stage:  # fmt: skip
        stage.device = pick_device(params.resources.device)
        pipes = per_thread(lambda: load_pipeline(paths.BASE, device=stage.device))
        length = num_frames(pipes().vae, params.clip.num_latents)
        check_size(params, pipes())
        frames_of = {"train": length, "heldout": max(length, params.seed.heldout_frames)}
        rejected = {entry.file_or_row: entry.reason for entry in source.rejected}
        ids: dict[str, SourceClip] = {}
        heldout = {sources[clip.file]: clip.file for clip in source.clips if clip.split == "heldout"}
        for clip in source.clips:
            if clip.split == "train" and sources[clip.file] in heldout:
                rejected[clip.file] = f"the same video is held out as {heldout[sources[clip.file]]}"
                continue
            made_of = {
                "source": sources[clip.file], "prompt": clip.caption, "split": clip.split, "clip": length,
                "video": params.video.model_dump(), "frames": frames_of[clip.split], "vae": vae_digest,
            }  # fmt: skip
            first = ids.setdefault(make_id("seed", made_of), clip)
            if first is not clip:
                rejected[clip.file] = f"the same video with the same caption as {first.file}"
        schema, key = table_schema("seed")
        table = WorkingTable(stage.work, "seed", schema, key)

        def row(clip_id: str, clip: SourceClip) -> dict[str, Any] | None:
            try:
                frames = decode_video(
                    clip.path,
                    height=params.video.height,
                    width=params.video.width,
                    fps=params.video.fps,
                    max_frames=frames_of[clip.split],
                )
                if len(frames) < length:
                    raise VideoError(
                        f"{len(frames)} frames at {params.video.fps:g} a second, a training clip needs {length}"
                    )
            except VideoError as error:
                rejected[clip.file] = str(error)
                return None
            latents = encode_frames(pipes().vae, frames[None, :length])[0].half().cpu().numpy()
            return {
                "clip_id": clip_id, "kind": "seed", "split": clip.split, "prompt": clip.caption,
                "source_path": clip.file, "source_sha256": sources[clip.file], "license": clip.license,
                "extra": canonical_json(clip.extra), **embeddings(frames, clip.caption),
                "was_derived_from": [id_of("file", sources[clip.file])], "was_generated_by": stage.run_id,
                **media_columns(frames, params.video.fps, params.video.crf, latents, vae_digest),
            }  # fmt: skip

        def work(batch: list[str]) -> None:
            rows = [row(clip_id, ids[clip_id]) for clip_id in batch]
            table.upsert([made for made in rows if made])

        def report() -> None:
            if rejected:
                publish_table("seed-rejected", [{"file": n, "reason": r} for n, r in sorted(rejected.items())])

        missing = table.missing(ids)
        run = run_batches(
            stage.label, chunked(missing, 16), work,
            workers=torch_workers(stage.device, params.resources.workers), done=len(ids) - len(missing), report=report,
        )  # fmt: skip
        stage.flow_run_id = run.flow_run_id
        absent = set(table.missing(ids))
        kept = [clip_id for clip_id in ids if clip_id not in absent]
        write_report(paths.INGEST_REPORT, [ids[i].file for i in kept], rejected)
        counts = {split: sum(ids[i].split == split for i in kept) for split in ("train", "heldout")}
        reasons = "".join(f"\n  {name}: {reason}" for name, reason in sorted(rejected.items())[:5])
        for split, purpose in (("train", "train on"), ("heldout", "evaluate with")):
            if not counts[split]:
                raise SeedError(f"{params.seed.source}: no clip left to {purpose} ({len(rejected)} rejected){reasons}")
        manifest = table.seal(paths.STORE, paths.manifest("seed"), kept)
        stage.outputs = {"table": "seed", "digest": manifest.digest, "rejected": len(rejected), **counts}
        say(f"seed: {counts['train']} clips to train on, {counts['heldout']} held out, {len(rejected)} rejected")
        if rejected:
            say(f"seed: rejected, all of them in {paths.INGEST_REPORT}:{reasons}")


def check_size(params: Params, pipe: WanPipeline) -> None:
    """Raises SeedError for a picture that the base's VAE and transformer cannot divide into tokens."""
    _, *patch = pipe.transformer.config.patch_size
    for name, pixels, size in zip(("height", "width"), (params.video.height, params.video.width), patch, strict=True):
        unit = int(pipe.vae.config.scale_factor_spatial) * int(size)
        if pixels % unit:
            raise SeedError(f"params.yaml: video.{name}: found {pixels}; expected a multiple of {unit} for this base")


def write_report(path: Path, kept: list[str], rejected: dict[str, str]) -> None:
    """CSV with a row for every video or metadata row seen: file, kept or rejected, reason."""
    rows = [(name, "kept", "") for name in kept] + [(name, "rejected", reason) for name, reason in rejected.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("file", "status", "reason"))
        writer.writerows(sorted(rows))


if __name__ == "__main__":
    command(main)

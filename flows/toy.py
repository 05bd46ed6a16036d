"""Stage `toy`: the toy world as a folder of mp4 files with metadata.jsonl, as any user's folder would be."""

from __future__ import annotations

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from flows.command import command
from flows.params import Params
from flows.progress import progress_bar
from flows.stage import Stage, path_digest
from model import toyworld
from model.rng import numpy_generator
from store.video import encode_video

FOLDER = Path("data/toy")


def main(params: Params) -> None:
    toy = params.toy
    with Stage("toy", params={"random_seed": params.random_seed, "toy": toy, "video": params.video}) as stage:
        folder = stage.work / "toy"

        def make(split: str, index: int) -> dict[str, str]:
            rng = numpy_generator("toy", params.random_seed, split, index)
            num_frames = toy.train_frames if split == "train" else toy.heldout_frames
            latest = max(0.0, toyworld.HORIZON - num_frames) if split == "train" else 0.0
            program = toyworld.sample_program(rng, start=float(rng.uniform(0, latest)) if latest else 0.0)
            name = f"{split}/{index:05d}.mp4"
            path = folder / name
            if not path.is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                draft = path.with_suffix(".part")
                draft.write_bytes(
                    encode_video(toyworld.render(program, num_frames, toy.size), params.video.fps, params.video.crf)
                )
                draft.replace(path)
            return {
                "file_name": name, "text": toyworld.caption(program), "split": split, "license": "CC0-1.0",
                "program": toyworld.to_json(program),
            }  # fmt: skip

        jobs = [("train", i) for i in range(toy.num_train)] + [("heldout", i) for i in range(toy.num_heldout)]
        with ThreadPoolExecutor(params.resources.workers) as pool:
            rows = []
            with progress_bar(len(jobs), stage.label, "clip") as bar:
                for row in pool.map(lambda job: make(*job), jobs):
                    rows.append(row)
                    bar.update(1)
        with (folder / "metadata.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, sort_keys=True) + "\n" for row in rows)
        FOLDER.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(FOLDER, ignore_errors=True)
        os.replace(folder, FOLDER)
        stage.outputs = {"clips": len(rows), "digest": path_digest(FOLDER)}


if __name__ == "__main__":
    command(main)

"""A project around nine held-out clips of the toy world: seed table, unit of drift, losses; no training clips."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from ruamel.yaml import YAML

from flows import paths
from flows.media import media_columns
from flows.params import Params, load_params
from flows.stage import write_json
from model import drift, features, naturalness, toyworld
from model.rng import numpy_generator
from store.digest import bytes_sha256, canonical_json, id_of
from store.embedding import look, words
from store.schema import table_schema
from store.table import WorkingTable

CLIPS, FRAMES, PREFIX = 9, 16, 2
ROUNDS = ("r0", "r1")
ROOT = Path(__file__).resolve().parents[2]


def truth(number: int) -> np.ndarray:
    return toyworld.render(program(number), FRAMES, 32)


def program(number: int) -> toyworld.Program:
    return toyworld.sample_program(numpy_generator("heldout", number))


def project(base: Path, **changed: dict) -> Params:
    """Writes it into the current folder: params of the smoke test with one round, and `changed` sections."""
    yaml = YAML()
    values = yaml.load((ROOT / "tests" / "smoke.yaml").read_text())
    values["evaluation"]["num_prompts"] = CLIPS
    del values["rounds"]["r2"]
    for section, keys in changed.items():
        values[section].update(keys)
    with Path("params.yaml").open("w") as file:
        yaml.dump(values, file)
    paths.BASE.parent.mkdir()
    for name in (paths.BASE, *map(paths.model, ROUNDS)):
        name.symlink_to(base)
    rows = [row(number) for number in range(CLIPS)]
    schema, key = table_schema("seed")
    table = WorkingTable(Path("work"), "seed", schema, key)
    table.upsert(rows)
    table.seal(paths.STORE, paths.manifest("seed"), [one["clip_id"] for one in rows])
    clips = [truth(number) for number in range(CLIPS)]
    unit = drift.fit([features.curves(one) for one in clips], PREFIX).to_json()
    looks = np.concatenate([naturalness.features(features.luma(one)) for one in clips])
    write_json(paths.NATURAL, {"clip": unit, "evaluation": unit, "naturalness": naturalness.fit(looks, 32, 32)})
    for k in ROUNDS:
        paths.losses(k).parent.mkdir(parents=True, exist_ok=True)
        with paths.losses(k).open("w", newline="") as file:
            csv.writer(file).writerows([("step", "loss_seed", "loss_corrective"), (1, 0.5, ""), (2, 0.4, "")])
    return load_params()


def row(number: int) -> dict:
    latents = numpy_generator("heldout latents", number).standard_normal((8, FRAMES, 8, 8)).astype(np.float32)
    prompt = toyworld.caption(program(number))
    return {
        "clip_id": f"seed-{number}", "kind": "seed", "split": "heldout", "prompt": prompt,
        "source_path": f"{number}.mp4", "source_sha256": bytes_sha256(b"%d" % number),
        "extra": canonical_json({"program": toyworld.to_json(program(number))}),
        "was_derived_from": [id_of("file", bytes_sha256(b"%d" % number))], "was_generated_by": "run-seed",
        "look": look(truth(number)), "words": words(prompt), **media_columns(truth(number), 8.0, 12, latents, "vae-0"),
    }  # fmt: skip

"""The training stage: one process or two, stopped and gone on with, sampled, with adapters. On a tiny pipeline."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import WanPipeline
from ruamel.yaml import YAML

from flows import paths, train
from flows.params import Params
from model.pipeline import load_pipeline, read_record
from store.errors import StoreError
from store.latents import pack_latents
from store.mixture import Pool, expand, write_plan
from store.schema import table_schema
from store.table import WorkingTable
from store.video import decode_video
from tests.conftest import seed_rows
from tests.flows.heldout import ROOT

STEPS = 24


def smoke() -> str:
    """The smoke loop's params, without routing, whose choice of chunks may turn on the last bits."""
    text = (ROOT / "tests" / "smoke.yaml").read_text()
    for seen, wanted in (("routed_chunks: 1}", "routed_chunks: null}"), ("r0: {steps: 6}", f"r0: {{steps: {STEPS}}}"),
                         ("sample_every: 3", "sample_every: null")):  # fmt: skip
        assert seen in text
        text = text.replace(seen, wanted)
    return text


def settings(**changes) -> Params:
    """The same; values of `resources` and `train` are changed by name."""
    params = YAML(typ="safe").load(smoke())
    params["resources"] |= {"checkpoint_every": 2, "sample_every": None}
    for name, value in changes.items():
        section, _, key = name.partition("_")
        params[section][key] = value
    return Params.model_validate(params)


@pytest.fixture(scope="module")
def project(tmp_path_factory, tiny_base) -> Path:
    """A folder with a base, seed clips with latents of the smoke loop's shape, and a plan."""
    root = tmp_path_factory.mktemp("train")
    (root / "models").mkdir()
    shutil.copytree(tiny_base, root / "models" / "base")
    (root / "params.yaml").write_text(smoke())
    shape = latent_shape(root / "models" / "base")
    rows = seed_rows()
    for number, row in enumerate(rows):
        latents = np.random.default_rng(number).standard_normal(shape).astype(np.float16)
        row["latents"], row["latents_shape"] = pack_latents(latents)
        row["split"] = "train" if number else "heldout"
    before = Path.cwd()
    os.chdir(root)
    try:
        schema, key = table_schema("seed")
        table = WorkingTable(Path("work"), "seed", schema, key)
        table.upsert(rows)
        digest = table.seal(paths.STORE, paths.manifest("seed"), [row[key] for row in rows]).digest
        ids = [row[key] for row in rows if row["split"] == "train"]
        write_plan(expand([Pool("seed", "r0", "seed", ids)], 0.0, 2 * STEPS, 0), paths.plan("r0"), {"seed": digest})
    finally:
        os.chdir(before)
    return root


def latent_shape(base: Path) -> tuple[int, ...]:
    params = settings()
    config = json.loads((base / "transformer" / "config.json").read_text())
    return config["in_channels"], params.clip.num_latents, 8, 8


@pytest.fixture
def copy(project, tmp_path, monkeypatch) -> Path:
    target = tmp_path / "project"
    shutil.copytree(project, target)
    monkeypatch.chdir(target)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    return target


def digest() -> str:
    return read_record("models/r0")["digests"]["model"]


def losses() -> list[float]:
    with paths.losses("r0").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def command() -> list[str]:
    return [sys.executable, "-m", "flows.train", "--round", "r0"]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def whole(project, tmp_path_factory) -> dict:
    """What an undisturbed run in one process makes."""
    target = tmp_path_factory.mktemp("whole") / "project"
    shutil.copytree(project, target)
    before, threads = Path.cwd(), torch.get_num_threads()
    os.chdir(target)
    torch.set_num_threads(1)
    try:
        train.main(settings(), "r0")
        return {"root": target, "digest": digest(), "losses": losses(), "record": read_record("models/r0")}
    finally:
        os.chdir(before)
        torch.set_num_threads(threads)


def test_the_round_says_what_it_was_trained_with(whole):
    record = whole["record"]
    assert (record["objective"], record["recipe"]["objective"]["name"]) == ("bagger", "bagger")
    assert record["recipe"]["num_steps"] == STEPS
    assert len(whole["losses"]) == STEPS // 2
    run = json.loads((whole["root"] / "data/runs/train_r0.json").read_text())
    assert run["outputs"]["model_digest"] == whole["digest"]
    assert not list((whole["root"] / ".work").glob("train-*/"))


@pytest.mark.timeout(300)
def test_killed_and_terminated_the_same_command_goes_on(copy, whole):
    def cut(number: int, when) -> tuple[int, str]:
        """Start the training, send it a signal once `when()`; its status and what it said."""
        child = subprocess.Popen(command(), cwd=copy, env=environment(), stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 120
        while not when():
            assert child.poll() is None, child.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        child.send_signal(number)
        return child.wait(120), child.stderr.read()

    def checkpoints() -> list[int]:
        return sorted(int(path.name[5:]) for path in Path(".work").glob("train-r0-*/step-*"))

    status, _ = cut(signal.SIGKILL, lambda: checkpoints() == [4])
    assert status == -signal.SIGKILL
    before = checkpoints()
    status, told = cut(signal.SIGTERM, lambda: max(checkpoints()) > max(before))
    assert status == 143, told
    assert "continues what an interrupted run left" in told
    assert f"train-r0: stopped after step {max(checkpoints())} of {STEPS}; the same command goes on from there" in told
    assert not Path("models/r0").exists()
    done = subprocess.run(command(), cwd=copy, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (digest(), losses()) == (whole["digest"], whole["losses"])


@pytest.mark.timeout(300)
def test_two_processes_that_share_the_weights_make_a_plain_pipeline(copy, whole):
    text = smoke().replace("processes: auto", "processes: 2")
    text = text.replace("sharding: replicate", "sharding: shard").replace("sample_every: null", "sample_every: 10")
    (copy / "params.yaml").write_text(text)
    done = subprocess.run(command(), cwd=copy, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert losses() == pytest.approx(whole["losses"], rel=1e-4)
    pipe = WanPipeline.from_pretrained("models/r0", dtype=torch.float32)
    alone = load_pipeline(whole["root"] / "models/r0")
    for (name, ours), theirs in zip(
        pipe.transformer.state_dict().items(), alone.transformer.state_dict().values(), strict=True
    ):
        assert (ours - theirs).norm() <= 1e-3 * theirs.norm() + 1e-4, name
    assert sorted(path.name for path in Path("samples/r0").iterdir()) == ["step-000010.mp4", "step-000020.mp4"]
    assert f"train-r0: {STEPS}/{STEPS} step" in done.stderr


def test_samples_are_videos_and_change_nothing(copy, whole, one_thread):
    train.main(settings(resources_sample_every=20), "r0")
    assert digest() == whole["digest"]
    (made,) = Path("samples/r0").iterdir()
    assert made.name == "step-000020.mp4"
    assert len(decode_video(made)) == settings().clip.num_latents


def test_parts_and_workers_are_carried_out_and_not_part_of_the_result(copy, whole, one_thread):
    train.main(settings(resources_loader_workers=1, resources_gradient_checkpointing=True), "r0")
    assert digest() == whole["digest"]


def test_adapters_are_merged(copy, whole, one_thread):
    train.main(settings(train_lora=4), "r0")
    ours, base = (load_pipeline(Path("models", name)).transformer.state_dict() for name in ("r0", "base"))
    assert ours.keys() == base.keys()
    changed = {name for name in ours if not torch.equal(ours[name], base[name])}
    assert changed
    assert all(".attn" in name or ".ffn." in name for name in changed)
    assert read_record("models/r0")["recipe"]["lora_rank"] == 4


def test_a_plan_of_another_store_is_refused(copy):
    rows = seed_rows()[:2]
    schema, key = table_schema("seed")
    table = WorkingTable(Path("work2"), "seed", schema, key)
    table.upsert(rows)
    shutil.rmtree("data/store/seed.lance")
    table.seal(paths.STORE, paths.manifest("seed"), [row[key] for row in rows])
    with pytest.raises(StoreError, match="dvc repro mix_r0"):
        train.main(settings(), "r0")


def test_texts_are_computed_alone_and_kept_while_there_is_room():
    asked: list[str] = []

    def encode(prompt: str) -> torch.Tensor:
        asked.append(prompt)
        return torch.full((2, 4), float(len(prompt)))

    texts = train.Texts(encode, room=3 * 32)
    texts.ahead(["b", "a", "b"])
    assert asked == ["", "a", "b"]
    assert texts(["a", "", "a"])[:, 0, 0].tolist() == [1, 0, 1]
    assert asked == ["", "a", "b"]
    texts(["ccc"])  # b, the least recently used, makes room
    texts(["a", "", "ccc", "b"])
    assert asked == ["", "a", "b", "ccc", "b"]
    texts.ahead(["a", "b", "c", "d"])  # no room for all: as they come
    assert "d" not in asked


def test_params_know_the_objectives_by_their_names():
    from typing import get_args

    from flows.params import Train
    from model.noising import Density
    from model.objectives import NAMES

    fields = Train.model_fields
    assert set(get_args(fields["objective"].annotation)) == set(NAMES)
    assert set(get_args(fields["timestep"].annotation)) == set(get_args(Density))

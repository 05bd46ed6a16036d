"""What tests of several rooms share: a tiny synthetic store, and a tiny pipeline of random weights.

The store has two rounds, three train clips and one held-out, two rollouts a round, in real sealed tables. Ids are plain
(`seed-0`, `clip-r1-1`) so that tests can say what they expect.
"""

import copy
import json
import os
import shutil

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and torch: tests run side by side, one core each

from pathlib import Path
from types import SimpleNamespace

import hypothesis
import numpy as np
import pytest

from store.catalog import build_catalog
from store.digest import bytes_sha256, digest, id_of
from store.embedding import look, words
from store.latents import pack_latents
from store.mixture import Pool, expand, summary, write_plan
from store.schema import DRIFT_PARTS, FEATURES, table_schema
from store.table import WorkingTable

hypothesis.settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("repeatable")

ROUNDS = ("r1", "r2")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that are given the most time come first: begun last, one of them would keep a core busy alone."""
    seconds: dict[Path, float] = {}
    for item in items:
        marker = item.get_closest_marker("timeout")
        seconds[item.path] = max(seconds.get(item.path, 0.0), marker.args[0] if marker else 0.0)
    items.sort(key=lambda item: -seconds[item.path])


def media(name: str, number: int) -> dict:
    """Columns of a clip whose latents are all `number`."""
    data, shape = pack_latents(np.full((2, 3, 2, 2), number, np.float32))
    video = f"mp4 of {name}".encode()
    return {
        "fps": 8.0,
        "num_frames": 3,
        "height": 16,
        "width": 16,
        "video": video,
        "video_sha256": bytes_sha256(video),
        "frames_sha256": bytes_sha256(b"frames" + video),
        "latents": data,
        "latents_shape": shape,
        "vae_digest": "vae-0",
    }


def embeddings(number: int, prompt: str) -> dict:
    """Columns of a clip of `number` times a grey, and of its prompt."""
    return {"look": look(np.full((3, 16, 16, 3), 20 * number, np.uint8)), "words": words(prompt)}


def seed_rows() -> list[dict]:
    return [
        {
            "clip_id": f"seed-{n}",
            "kind": "seed",
            "split": "heldout" if n == 3 else "train",
            "prompt": f"a red disc moves left, it's number {n}",
            "source_path": f"videos/{n}.mp4",
            "source_sha256": bytes_sha256(b"%d" % n),
            "extra": "{}",
            "was_derived_from": [id_of("file", bytes_sha256(b"%d" % n))],
            "was_generated_by": "run-seed",
            **media(f"seed-{n}", n),
            **embeddings(n, f"a red disc moves left, it's number {n}"),
        }
        for n in range(4)
    ]


def rollout_rows(name: str, model: str) -> list[dict]:
    return [
        {
            "rollout_id": f"rollout-{name}-{n}",
            "round": name,
            "seed_clip_id": f"seed-{n}",
            "model_digest": model,
            "prompt": f"a red disc moves left, it's number {n}",
            "settings": json.dumps({"num_steps": 8, "shift": 3.0}),
            "rng_name": f"rollout/{name}/{n}",
            "prefix_frames": 1,
            "prefix_latents": 1,
            "chunk_latents": 1,
            "was_derived_from": [f"seed-{n}", model],
            "was_generated_by": f"run-rollout-{name}",
            **media(f"rollout-{name}-{n}", 10 + n),
        }
        for n in range(2)
    ]


def score_rows(name: str) -> list[dict]:
    return [
        {
            "rollout_id": f"rollout-{name}-{n}",
            "round": name,
            "scorer": "handmade@1",
            **{c: [0.0, 0.5, 1.0] for c in FEATURES},
            **{f"drift_{part}": 0.1 * (n + 1) for part in DRIFT_PARTS},
            "drift": {"r1": 0.9, "r2": 0.4}[name] - 0.3 * n,
            "drift_z": 1.5,
            "drift_part": ("over-saturating", "none")[n],
            "drift_parts": ("over-saturating,darkening", "")[n],
            "gates": "",
            "oracle_color_error": 0.25 if n == 0 else None,
            "was_derived_from": [f"rollout-{name}-{n}"],
            "was_generated_by": f"run-score-{name}",
        }
        for n in range(2)
    ]


def rewrite_rows(name: str) -> list[dict]:
    """Of the toy grammar, but that number 1 is a language model's second answer."""
    rows = []
    for n in range(2):
        prompt, source = f"a red disc moves right, it's number {n}", f"a red disc moves left, it's number {n}"
        verdicts = [{"name": "parses", "pass": True, "detail": ""}]
        attempt = {
            "rewriter": ("toy-grammar", "llm")[n],
            "request_digest": None,
            "raw_output": prompt,
            "error": None,
            "verdicts": verdicts,
            "sampling": None,
            "tokens": None,
        }
        row = {
            "rewrite_id": f"rewrite-{n}",
            "prompt": prompt,
            "source_prompt": source,
            "reversal_class": "equivariant",
            "reasons": ["'moves left' turns into 'moves right'"],
            "marker_style": "none",
            "rewriter_kind": "toy-grammar",
            "rewriter_version": "1",
            "spans": json.dumps([{"source": "left", "target": "right", "kind": "direction"}]),
            "verdicts": json.dumps(verdicts),
            "num_attempts": 1,
            "attempts": json.dumps([attempt]),
            "raw_output": prompt,
            "was_derived_from": [],
            "was_generated_by": f"run-rewrite-{name}",
        }
        if n == 1:
            sampling = {"temperature": 0.7, "top_p": 0.95, "max_tokens": 400}
            asked = {"request_digest": digest("retry"), "sampling": sampling, "tokens": {"input": 300, "output": 40}}
            failed = attempt | asked | {"raw_output": "{", "error": "no JSON", "verdicts": []}
            row |= {
                "rewriter_kind": "llm",
                "fallback_from": "toy-grammar",
                "num_attempts": 2,
                "attempts": json.dumps([failed, attempt | asked]),
                "model_id": "team/tiny-llm",
                "model_revision": "c" * 40,
                "endpoint_kind": "transformers",
                "template_digest": digest("template"),
                "schema_digest": digest("schema"),
                "sampling": json.dumps(sampling),
                "seed": 2**40 + 1,
                "request_digest": digest("retry"),
                "input_tokens": 600,
                "output_tokens": 80,
                "seconds": 1.25,
            }
        rows.append(row)
    return rows


def clip_rows(name: str, model: str) -> list[dict]:
    return [
        {
            "clip_id": f"clip-{name}-{n}",
            "kind": "corrective",
            "round": name,
            "rollout_id": f"rollout-{name}-{n}",
            "seed_clip_id": f"seed-{n}",
            "model_digest": model,
            "prompt": f"a red disc moves right, it's number {n}",
            "source_prompt": f"a red disc moves left, it's number {n}",
            "rewrite_id": f"rewrite-{n}",
            "rewriter_kind": ("toy-grammar", "llm")[n],
            "reversal_class": "equivariant",
            "marker_style": "none",
            "was_derived_from": [f"rollout-{name}-{n}", f"rewrite-{n}"],
            "was_generated_by": f"run-correct-{name}",
            **media(f"clip-{name}-{n}", int(name[1:]) * 100 + n),
            **embeddings(n, f"a red disc moves right, it's number {n}"),
        }
        for n in range(2)
    ]


def run(stage: str, name: str | None, inputs: dict, outputs: dict, number: int) -> dict:
    return {
        "run_id": f"run-{stage}" + (f"-{name}" if name else ""),
        "stage": stage,
        "round": name,
        "params": {"stage": stage, "train": {"batch_size": 4}},
        "inputs": inputs,
        "outputs": outputs,
        "git_commit": "0" * 40,
        "packages": {"numpy": "2"},
        "device": "cpu",
        "host": "here",
        "was_associated_with": "bagger 0",
        "started_at_time": f"2026-01-01T00:00:{number:02d}+00:00",
        "ended_at_time": f"2026-01-01T00:00:{number:02d}+00:00",
        "seconds": 1.5,
    }


def seal(root: Path, name: str, rows: list[dict]) -> None:
    schema, key = table_schema(name)
    table = WorkingTable(root / "work", name, schema, key)
    table.upsert(rows)
    table.seal(root / "store", root / "manifests" / f"{name}.json", [row[key] for row in rows])


def build(root: Path) -> SimpleNamespace:
    """Sealed tables, plans, run records and catalog under `root`."""
    store = root / "store"
    models = {name: id_of("model", digest(name)) for name in ("base", "r0", *ROUNDS)}
    seal(root, "seed", seed_rows())
    pools = [Pool("seed", "r0", "seed", [f"seed-{n}" for n in range(3)])]
    runs = [
        run("base", None, {}, {"model_digest": models["base"]}, 0),
        run("seed", None, {}, {"rows": 4}, 1),
    ]
    plans, previous = {}, "r0"
    for number, name in enumerate(("r0", *ROUNDS)):
        if name != "r0":
            seal(root, f"rollouts_{name}", rollout_rows(name, models[previous]))
            seal(root, f"rewrites_{name}", rewrite_rows(name))
            seal(root, f"scores_{name}", score_rows(name))
            seal(root, f"clips_{name}", clip_rows(name, models[previous]))
            pools.append(Pool("corrective", name, f"clips_{name}", [f"clip-{name}-{n}" for n in range(2)]))
            runs += [
                run("rollout", name, {"model_digest": models[previous]}, {"rows": 2}, 10 * number),
                run("rewrite", name, {}, {"rows": 2}, 10 * number + 1),
                run("score", name, {}, {"rows": 2}, 10 * number + 2),
                run("correct", name, {}, {"rows": 2}, 10 * number + 3),
            ]
        plan = expand(pools, 0.0 if name == "r0" else 0.5, 12, seed=0)
        plans[name] = write_plan(plan, root / "plans" / f"{name}.parquet")
        runs += [
            run("mix", name, {}, {"plan_digest": plans[name], "summary": summary(plan)}, 10 * number + 4),
            run(
                "train",
                name,
                {"plan_digest": plans[name], "init_digest": models["base"]},
                {"model_digest": models[name]},
                10 * number + 5,
            ),
        ]
        previous = name
    files = {name: root / "plans" / f"{name}.parquet" for name in plans}
    manifest = build_catalog(store, ROUNDS, runs, files)
    return SimpleNamespace(
        root=root, store=store, files=files, models=models, plans=plans, runs=runs, manifest=manifest
    )


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> SimpleNamespace:
    """Shared by every test: read only."""
    return build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def tiny_copy(tiny, tmp_path) -> SimpleNamespace:
    """A store of one's own, to be changed."""
    shutil.copytree(tiny.root, tmp_path, dirs_exist_ok=True)
    own = {"root": tmp_path, "store": tmp_path / "store", "runs": copy.deepcopy(tiny.runs)}
    own["files"] = {name: tmp_path / path.relative_to(tiny.root) for name, path in tiny.files.items()}
    return SimpleNamespace(**{**vars(tiny), **own})


@pytest.fixture(scope="session")
def rows() -> SimpleNamespace:
    """The makers of synthetic rows, and of sealed tables from them."""
    return SimpleNamespace(
        seed=seed_rows,
        rollouts=rollout_rows,
        rewrites=rewrite_rows,
        scores=score_rows,
        clips=clip_rows,
        seal=seal,
        run=run,
    )


@pytest.fixture(scope="session")
def s3_server():
    """A real S3-speaking server with a bucket `team`; see tests/s3.py."""
    from tests.s3 import server

    with server() as started:
        yield started


@pytest.fixture
def s3(s3_server, monkeypatch):
    """That server, and the environment of this test names it."""
    for name in [one for one in os.environ if one.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server


@pytest.fixture(scope="module")
def one_thread():
    """Very small products are faster on one thread, above all where others want the cores too."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def prefect_home(tmp_path_factory) -> Path:
    """What a project has as `.prefect` before its first run, to be copied: Prefect takes its time to make a database.
    All workers share one."""
    from filelock import FileLock

    from flows.server import HOME, prefect_server

    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    project = root / "prefect"
    with FileLock(root / "prefect.lock"), pytest.MonkeyPatch.context() as patch:
        if not project.exists():
            draft = root / "prefect.draft"
            draft.mkdir()
            patch.chdir(draft)
            patch.delenv("PREFECT_API_URL", raising=False)
            with prefect_server():
                pass
            draft.rename(project)
    return project / HOME


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory):
    """Folder of a whole pipeline in the toy base's layout, small and random, for 32x32 pixels and 8x8 latents."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline
    from transformers import UMT5Config, UMT5EncoderModel

    from model.base import Recipe, new_tokenizer, new_transformer, new_vae
    from model.pipeline import save_base

    tokenizer = new_tokenizer()
    config = UMT5Config(
        vocab_size=len(tokenizer), d_model=64, d_kv=8, d_ff=32, num_layers=1, num_heads=2, pad_token_id=0
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae, text_encoder = new_vae(), UMT5EncoderModel(config)
    pipe = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder.eval(),
        vae=vae.eval(),
        transformer=new_transformer(Recipe(width_heads=(2, 16), layers=1, ffn=32)).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    folder = tmp_path_factory.mktemp("models") / "base"
    save_base(pipe, folder, {"kind": "base", "source": "tiny"})
    return folder


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub of its own for the test, in whose environment this process is; ada of lab may write, eve may not."""
    from tests.hub import Hub

    with Hub() as hub:
        hub.add_user("ada", "hf_ada", orgs=("lab",))
        hub.add_user("eve", "hf_eve")
        hub.add_user("ada", "hf_read", orgs=("lab",), role="read")
        constants = {
            "ENDPOINT": hub.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_DISABLE_XET": True,
            "HF_TOKEN_PATH": str(tmp_path / "none"),
            "HF_HUB_CACHE": str(tmp_path / "cache"),
        }
        for name, value in constants.items():
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda _: None))
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", "hf_ada")
        yield hub

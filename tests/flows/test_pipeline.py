"""The whole loop, very small, with real DVC and real Prefect, in temporary clones.

Two clones of what is in the working tree now, with tests/smoke.yaml as params.yaml, run at the same time:
- `loop` runs `python -m flows.repro` from beginning to end, undisturbed;
- `interrupted` runs it until evaluate_r0 and mix@r1; in rollout@r1 first the stage, then dvc is killed between batches.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML

from flows.params import load_params, set_rounds
from flows.server import HOME
from model.pipeline import decode_latents, load_pipeline
from store import Store
from store.digest import bytes_sha256
from store.latents import unpack_latents
from store.schema import table_schema
from store.table import WorkingTable, content_manifest, read_manifest, read_table
from store.video import decode_video, probe

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "tests" / "smoke.yaml"
FOLDERS = ("flows", "store", "model", "assets")
FILES = ("dvc.yaml", "rewrites.yaml", ".dvcignore", ".gitignore", ".dvc/config", ".dvc/.gitignore")
ROUNDS = ("r0", "r1", "r2")

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(sys.platform != "linux", reason="processes are watched in /proc"),
]


# ---------------------------------------------------------------------------------------------------- running clones


def environment() -> dict[str, str]:
    """This process's, with this Python as `python`, one thread each, and nothing of an outer dvc or Prefect."""
    own = ("DVC_", "PREFECT_", "PYTHONPATH", "GIT_DIR", "GIT_WORK_TREE")
    env = {key: value for key, value in os.environ.items() if not key.startswith(own)}
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", "")])
    for role in ("AUTHOR", "COMMITTER"):
        env |= {f"GIT_{role}_NAME": "test", f"GIT_{role}_EMAIL": "test@example.org"}
    return env | {"OMP_NUM_THREADS": "1", "DVC_NO_ANALYTICS": "1"}


def run(root: Path, *words: str, status: int | None = 0) -> subprocess.CompletedProcess[str]:
    """Runs `python -m …` in a clone and waits."""
    done = subprocess.run([sys.executable, "-m", *words], cwd=root, env=environment(), capture_output=True, text=True)
    assert status is None or done.returncode == status, f"{' '.join(words)}:\n{done.stdout}\n{done.stderr}"
    return done


def git(root: Path, *words: str) -> str:
    return subprocess.run(
        ["git", *words], cwd=root, env=environment(), check=True, capture_output=True, text=True
    ).stdout


@contextlib.contextmanager
def started(root: Path, log: Path, *words: str):
    """A command in a clone while the block runs; killed with all its kin if it still runs then."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *words], cwd=root, env=environment(), stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def wait_for(condition, seconds: float = 300.0, unless=lambda: False):
    """Polls until the condition holds, and returns what it gave."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert not unless(), "ended before"
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)
    return value


def processes(root: Path) -> dict[int, SimpleNamespace]:
    """Living processes that work in a folder, by id: parent and command line."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if not Path(os.readlink(entry / "cwd")).is_relative_to(root):
                continue
            words = (entry / "cmdline").read_bytes().decode().split("\0")
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:  # it has just ended, or is not ours
            continue
        if state not in "ZX":
            found[int(entry.name)] = SimpleNamespace(parent=int(parent), words=words)
    return found


def rollouts_running(root: Path) -> list[int]:
    """Stage processes of `rollout`, without the shell above and the children (ffmpeg, before exec) below."""
    every = processes(root)
    alike = {pid for pid, one in every.items() if "flows.rollout" in one.words and "-c" not in one.words}
    return [pid for pid in alike if every[pid].parent not in alike]


class Census(threading.Thread):
    """Counts, ten times a second, how many rollout stages work in a clone."""

    def __init__(self, root: Path):
        super().__init__(daemon=True)
        self.root, self.most, self.done = root, 0, threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.1):
            self.most = max(self.most, len(rollouts_running(self.root)))


def landed(root: Path, round: str = "r1") -> int:
    """Rollouts in the working table of a stage that is running or was killed."""
    name = f"rollouts_{round}"
    schema, key = table_schema(name)
    return sum(WorkingTable(path, name, schema, key).count() for path in root.glob(f".work/rollout-{round}-*/"))


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A git repository of what the working tree holds now; what git would not carry is not in its clones."""
    root = tmp_path_factory.mktemp("source")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    (root / ".dvc").mkdir()
    for name in FILES:
        shutil.copy(ROOT / name, root / name)
    shutil.copy(SMOKE, root / "params.yaml")
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "smoke")
    return root


def clone(source: Path, target: Path) -> Path:
    git(source, "clone", "-q", str(source), str(target))
    return target.resolve()


@pytest.fixture(scope="module")
def running(source, tmp_path_factory):
    """The undisturbed run, in the background from here on."""
    root = clone(source, tmp_path_factory.mktemp("loop") / "clone")
    log = root.parent / "log"
    began = time.monotonic()
    with started(root, log, "flows.repro") as process:
        yield SimpleNamespace(root=root, log=log, process=process, began=began)


@pytest.fixture(scope="module")
def loop(running) -> SimpleNamespace:
    """The undisturbed run, finished: root of the clone and what it said. Shared: read only."""
    assert running.process.wait(800) == 0, running.log.read_text()
    return SimpleNamespace(root=running.root, store=running.root / "data" / "store", said=running.log.read_text())


@pytest.fixture
def copy(loop, prefect_home, tmp_path) -> Path:
    """The finished project to change at will. Its DVC cache is shared, so that nothing big is copied."""
    root = tmp_path / "copy"
    shutil.copytree(loop.root, root, symlinks=True, ignore=shutil.ignore_patterns("cache", ".prefect", "tmp"))
    shutil.copytree(prefect_home, root / HOME)
    (root / ".dvc" / "config.local").write_text(f'[cache]\n    dir = "{loop.root / ".dvc" / "cache"}"\n')
    return root


@pytest.fixture(scope="module")
def interrupted(source, running, prefect_home, tmp_path_factory) -> SimpleNamespace:
    """A second run, whose rollout@r1 is killed twice on the way; with a record of what was seen."""
    root = clone(source, tmp_path_factory.mktemp("interrupted") / "clone")
    shutil.copytree(prefect_home, root / HOME)
    log = root.parent / "log"
    command = (root, log, "flows.repro", "evaluate_r0", "mix@r1")
    census = Census(root)
    census.start()

    with started(*command) as first:
        wait_for(lambda: landed(root), unless=lambda: first.poll() is not None)
        (stage,) = rollouts_running(root)
        os.kill(stage, signal.SIGKILL)
        status = first.wait(60)
    after_stage = landed(root)
    left_by_stage = survivors(root)

    with started(*command) as second:
        wait_for(lambda: landed(root) > after_stage, unless=lambda: second.poll() is not None)
        old = set(processes(root))
        second.kill()
        second.wait()
    with started(*command) as third:  # at once: before it is known whether the old stage is gone
        wait_for(lambda: not old & set(processes(root)), seconds=10)
        after_dvc = landed(root)
        assert third.wait(600) == 0, log.read_text()
    left_at_end = survivors(root)
    census.done.set()
    return SimpleNamespace(
        root=root, store=root / "data" / "store", said=log.read_text(), status=status, after_stage=after_stage,
        left_by_stage=left_by_stage, after_dvc=after_dvc, left_at_end=left_at_end, most=census.most,
    )  # fmt: skip


def survivors(root: Path, seconds: float = 5.0) -> dict[int, SimpleNamespace]:
    """Processes that still work in a clone after a few seconds."""
    deadline = time.monotonic() + seconds
    while (left := processes(root)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


# ------------------------------------------------------------------------------------------- killed, and run again


def test_killed_runs_leave_no_process_and_never_two(interrupted):
    assert interrupted.status != 0  # dvc does not take a killed stage for a finished one
    assert interrupted.left_by_stage == {}  # neither the stage's kin nor the private Prefect server
    assert interrupted.left_at_end == {}
    assert interrupted.most == 1


def test_killed_runs_go_on_where_they_were(interrupted):
    wanted = load_params(SMOKE).round("r1").rollouts
    assert 0 < interrupted.after_stage < interrupted.after_dvc < wanted
    assert interrupted.said.count("rollout-r1: continues what an interrupted run left") == 2
    assert [path for path in (interrupted.root / ".work").iterdir() if path.is_dir()] == []


def test_killed_runs_neither_lose_nor_double_a_clip(interrupted):
    wanted = load_params(SMOKE).round("r1").rollouts
    table = read_table(interrupted.store, "rollouts_r1", ["rollout_id", "seed_clip_id"])
    ids = table["rollout_id"].to_pylist()
    assert len(ids) == len(set(ids)) == wanted
    visits = Counter(table["seed_clip_id"].to_pylist())
    assert max(visits.values()) - min(visits.values()) <= 1
    clip_ids = read_table(interrupted.store, "clips_r1", ["rollout_id"])["rollout_id"].to_pylist()
    assert sorted(clip_ids) == sorted(ids)


def test_two_runs_give_the_same_digests(interrupted, loop):
    """And one of them was killed twice: tables, plans, weights and evaluations are the same, up to where it ran."""
    root = interrupted.root
    patterns = ("data/manifests/*.json", "data/plans/*", "data/*.json", "data/*.csv", "models/*/bagger.json")
    patterns += ("models/*/*/*.safetensors", "metrics/**/*.*", "evaluation/*/*.csv")
    same = sorted({p.relative_to(root) for pattern in patterns for p in root.glob(pattern) if p.is_file()})
    made = ("data/manifests/clips_r1.json", "data/plans/r1.parquet", "models/r0/bagger.json", "metrics/r0.json")
    assert set(map(Path, made)) <= set(same)
    for name in same:
        assert (interrupted.root / name).read_bytes() == (loop.root / name).read_bytes(), name


# ------------------------------------------------------------------------------------------------ the finished loop


def test_every_out_is_there(loop):
    lock = YAML(typ="safe").load((loop.root / "dvc.lock").read_text())["stages"]
    outs = [out["path"] for stage in lock.values() for out in stage["outs"]]
    assert len(lock) == 24
    assert [out for out in outs if not (loop.root / out).exists()] == []
    assert json.loads(run(loop.root, "dvc", "status", "--json").stdout) == {}
    assert git(loop.root, "status", "--porcelain").split("\n") == ["?? dvc.lock", ""]
    kinds = ("rollouts", "rewrites", "scores", "clips")
    for name in ("seed", *(f"{kind}_{k}" for kind in kinds for k in ROUNDS[1:])):
        manifest = read_manifest(loop.root / "data" / "manifests" / f"{name}.json")
        assert content_manifest(loop.store, name) == manifest
        assert manifest.rows > 0


def test_second_run_changes_nothing_and_says_so(loop):
    before = (loop.root / "dvc.lock").stat().st_mtime_ns
    began = time.monotonic()
    said = run(loop.root, "flows.repro").stderr
    assert "nothing to do" in said
    assert time.monotonic() - began < 40  # a run takes minutes
    assert (loop.root / "dvc.lock").stat().st_mtime_ns == before


def test_metrics_and_plots(loop):
    shown = json.loads(run(loop.root, "dvc", "metrics", "show", "--json").stdout)[""]["data"]
    assert {name: shown[f"metrics/{name}.json"]["data"]["num_clips"] for name in ROUNDS} == dict.fromkeys(ROUNDS, 3)
    assert all(shown[f"metrics/{name}.json"]["data"]["drift"] >= 0 for name in ROUNDS)
    out = loop.root.parent / "plots"
    plots = json.loads(run(loop.root, "dvc", "plots", "show", "--json", "-o", str(out)).stdout)
    assert not plots.get("errors")
    bars = plots["data"]["drift by round"][0]["content"]["data"]["values"]
    assert [bar["round"] for bar in bars] == ["real", *ROUNDS]
    losses = plots["data"]["metrics/losses/r0.csv"][0]["content"]["data"]["values"]
    assert [row["step"] for row in losses] == ["2", "4", "6"]


def test_reports(loop):
    reports = loop.root / "reports"
    pictures = ["drift.png", "losses.png", "parts.png", "quality_over_time.png"]  # three prompts have no distance
    assert sorted(p.name for p in reports.glob("*.png")) == pictures
    assert all((reports / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for name in pictures)
    assert all((reports / f"{name}.csv").stat().st_size > 0 for name in ("drift_by_round", "quality_over_time"))
    params = load_params(SMOKE)
    frames = decode_video(reports / "grid.mp4")
    assert len(frames) == params.evaluation.num_chunks * params.clip.chunk_latents
    assert frames.std() > 10
    assert probe(reports / "grid.mp4").codec == "h264"
    for name in ROUNDS:
        assert len(list((loop.root / "evaluation" / name / "videos").glob("*.mp4"))) == params.evaluation.num_prompts


def test_artifacts_of_the_flows(loop):
    with contextlib.closing(sqlite3.connect(loop.root / ".prefect" / "prefect.db")) as database:
        found = set(database.execute("select key, type from artifact"))
    for name in ROUNDS[1:]:
        assert {(f"rollouts-{name}", "image"), (f"clips-{name}", "image"), (f"scores-{name}", "table")} <= found
        assert (f"rewrites-{name}", "table") in found


def test_corrective_clips_are_rollouts_played_backwards(loop, one_thread):
    """Frame by frame before encoding, and near enough after it."""
    vae = load_pipeline(loop.root / "models" / "base").vae
    rollouts = {row["rollout_id"]: row for row in read_table(loop.store, "rollouts_r2").to_pylist()}
    clips = read_table(loop.store, "clips_r2").to_pylist()
    assert len(clips) == load_params(SMOKE).round("r2").rollouts
    for clip in clips:
        rollout = rollouts[clip["rollout_id"]]
        latents = unpack_latents(rollout["latents"], rollout["latents_shape"]).astype(np.float32)
        frames = decode_latents(vae, torch.from_numpy(latents)[None])[0]
        assert bytes_sha256(frames.tobytes()) == rollout["frames_sha256"]
        assert bytes_sha256(np.ascontiguousarray(frames[::-1]).tobytes()) == clip["frames_sha256"]
        assert clip["latents_shape"] == rollout["latents_shape"]
    for clip in clips[:3]:
        forwards = decode_video(rollouts[clip["rollout_id"]]["video"])
        backwards = decode_video(clip["video"])
        assert len(forwards) == clip["num_frames"]
        error = np.abs(forwards[::-1].astype(int) - backwards).mean()
        assert error < 4
        assert error < np.abs(forwards.astype(int) - backwards).mean()


def walk(node: dict):
    yield node
    for parent in node["parents"]:
        yield from walk(parent)


def test_lineage_reaches_everything(loop):
    clip = Store(loop.store).clips(round="r2", sort="-drift", limit=1).to_pylist()[0]
    found: dict[str, list[dict]] = {}
    for node in walk(Store(loop.store).lineage(clip["clip_id"])):
        found.setdefault(node["type"], []).append(node)
    assert all("note" not in node for nodes in found.values() for node in nodes)  # nothing that the store cannot tell
    rollout, seed, rewrite = (found[kind][0] for kind in ("rollout", "seed", "rewrite"))
    assert rollout["settings"]["num_steps"] == 2
    assert rollout["score"]["drift"] == pytest.approx(clip["drift"])
    assert seed["split"] == "train"
    assert (loop.root / "data" / "toy" / seed["source_path"]).is_file()
    assert rewrite["source_prompt"] == seed["prompt"]
    assert rewrite["prompt"] == clip["prompt"]
    digests = {k: json.loads((loop.root / "models" / k / "bagger.json").read_text())["digests"]["model"]
               for k in ("base", "r0", "r1")}  # fmt: skip
    assert set(digests.values()) <= {node["id"] for node in found["model"]}
    assert {"r0", "r1"} <= {node["id"] for node in found["round"]}
    stages = {node["stage"] for node in found["run"] if "stage" in node}
    assert {"mix", "train", "rollout", "rewrite", "correct", "seed"} <= stages
    commit = git(loop.root, "rev-parse", "HEAD").strip()
    assert {n["git_commit"].rstrip("+") for n in found["run"] if "git_commit" in n} == {commit}


def test_catalog_has_a_tag_per_round(loop):
    params = load_params(SMOKE)
    seeds = params.toy.num_train + params.toy.num_heldout
    sizes = [seeds, *(params.round(k).rollouts for k in params.round_names)]
    for index, name in enumerate(ROUNDS):
        found = Store(loop.store).clips(kind="all", at=name).to_pylist()
        assert len(found) == sum(sizes[: index + 1])
        assert {clip["round"] for clip in found} == set(ROUNDS[: index + 1])
    assert all(clip["drift"] >= 0 for clip in Store(loop.store).clips().to_pylist())


FROM_PRETRAINED = """
import sys
from diffusers import WanPipeline

pipe = WanPipeline.from_pretrained(sys.argv[1])
pipe.set_progress_bar_config(disable=True)
made = pipe(prompt="a red disc", height=32, width=32, num_frames=5, num_inference_steps=2, output_type="np").frames
assert not {"flows", "store", "model"} & set(sys.modules)
print(type(pipe.transformer).__name__, made.shape[0], *made.shape[2:])
"""


def test_a_round_is_a_stock_pipeline(loop, tmp_path):
    command = [sys.executable, "-c", FROM_PRETRAINED, str(loop.root / "models" / "r1")]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "WanTransformer3DModel 1 32 32 3"


# ---------------------------------------------------------------------------------------------- what a change reruns


def test_changed_share_recomputes_exactly_what_depends_on_it(copy, loop):
    before = contents(loop.store / "catalog.lance")
    done = run(copy, "dvc", "exp", "run", "-S", "rounds.r2.corrective=0.25")
    ran = [line.split("'")[1] for line in done.stdout.splitlines() if line.startswith("Running stage")]
    assert sorted(ran) == ["catalog", "evaluate@r2", "mix@r2", "report", "train@r2"]
    assert "rounds.r2.corrective" in run(copy, "dvc", "params", "diff").stdout
    plan = json.loads((copy / "data" / "plans" / "r2.json").read_text())
    assert plan["corrective"] == pytest.approx(0.25)
    assert (copy / "models/r2/bagger.json").read_bytes() != (loop.root / "models/r2/bagger.json").read_bytes()
    assert (copy / "models/r1/bagger.json").read_bytes() == (loop.root / "models/r1/bagger.json").read_bytes()
    # Its clips are the same, so the catalog was kept, and what it shares with DVC's cache was not written into.
    after = contents(copy / "data/store/catalog.lance")
    assert {name for name in after if "/data/" in name} == {name for name in before if "/data/" in name} != set()
    assert contents(loop.store / "catalog.lance") == before
    assert json.loads(run(copy, "dvc", "status", "--json").stdout) == {}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, by its place in it."""
    return {f"/{one.relative_to(folder)}": one.read_bytes() for one in sorted(folder.rglob("*")) if one.is_file()}


def test_another_round_leaves_the_others_alone(copy):
    set_rounds(3, copy / "params.yaml")
    changed = json.loads(run(copy, "dvc", "status", "--json").stdout)
    new = {f"{stage}@r3" for stage in ("rollout", "rewrite", "score", "correct", "mix", "train", "evaluate")}
    assert set(changed) == new | {"catalog", "report"}


def test_a_bad_source_leaves_the_store_as_it_was(copy, tmp_path):
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "a.mp4").write_text("this is no video")
    (bad / "metadata.jsonl").write_text('{"file_name": "a.mp4", "text": "nothing"}\n')
    text = (copy / "params.yaml").read_text()
    (copy / "params.yaml").write_text(text.replace("source: data/toy", f"source: {bad}"))
    manifest = (copy / "data/manifests/seed.json").read_bytes()
    done = run(copy, "dvc", "repro", "seed", status=None)
    assert done.returncode != 0
    assert "error: " in done.stderr
    assert "a.mp4" in done.stderr
    assert (copy / "data/manifests/seed.json").read_bytes() == manifest
    assert content_manifest(copy / "data/store", "seed") == read_manifest(copy / "data/manifests/seed.json")


def test_other_resources_rerun_nothing(copy):
    text = (copy / "params.yaml").read_text()
    changed = re.sub(r"workers: 2\s+rollout_batch: 4", "workers: 1\n  rollout_batch: 7", text)
    assert changed != text
    (copy / "params.yaml").write_text(changed)
    assert json.loads(run(copy, "dvc", "status", "--json").stdout) == {}

"""`bagger audit`, `gc`, `runs` and `migrate` in a project's folder: what they print, how they end, what they delete."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import lance
import pytest

from flows.garbage import Garbage, garbage, remove
from flows.process import acquire_lock
from flows.stage import Stage
from flows.unfinished import unfinished_runs
from store.manifest import write_manifest
from store.schema import SCHEMA_VERSION
from store.table import StoreError, WorkingTable, table_schema

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tiny, tmp_path, monkeypatch):
    """The tiny store as a project's, the current folder; params.yaml has its two rounds."""
    for name in ("store", "manifests", "plans"):
        shutil.copytree(tiny.root / name, tmp_path / "data" / name)
    write_manifest(tiny.manifest, tmp_path / "data" / "catalog.json")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    return tmp_path


def set_rounds(bagger, count: int) -> None:
    assert bagger("rounds", count).status == 0


def interrupt(rows, count: int = 2) -> Path:
    """A rollout@r2 that was interrupted with some rows done; its work folder."""
    schema, key = table_schema("rollouts_r2")
    stage = Stage("rollout", "r2", params={"steps": 8})
    with contextlib.suppress(RuntimeError), stage:
        WorkingTable(stage.work, "rollouts_r2", schema, key).upsert(rows.rollouts("r2", "model-x")[:count])
        raise RuntimeError
    return stage.work


# ---------------------------------------------------------------- audit


def test_a_whole_store_says_what_was_checked(bagger, project):
    set_rounds(bagger, 2)
    told = bagger("audit", "--quick")
    assert told.status == 0
    assert told.out.startswith("12 tables: 0 errors, 0 warnings, ")
    assert len(told.out.splitlines()) == 1


def test_errors_are_grouped_with_their_repair_and_status_1(bagger, project):
    set_rounds(bagger, 2)
    told = bagger("audit", "seed")  # the tiny store's videos are none
    assert told.status == 1
    lines = told.out.splitlines()
    assert lines[0] == "error: undecodable in seed (4)"
    assert lines[1].startswith("  seed-0: video of 13 bytes: ")
    assert lines[4:6] == [
        "  and 1 more (--all shows them)",
        "  mend it with: dvc checkout --force data/store/seed.lance",
    ]
    assert "1 tables, every video decoded: 4 errors, 0 warnings" in lines[-1]
    assert "seed-3" in bagger("audit", "seed", "--all").out


def test_json_is_one_array(bagger, project):
    set_rounds(bagger, 1)
    (project / "data" / "manifests" / "seed.json").unlink()
    told = bagger("audit", "--quick", "--json")
    found = {(one["check"], one["table"]): one for one in json.loads(told.out)}
    assert told.status == 1
    assert found["manifest", "seed"]["repair"] == "dvc repro seed"
    assert found["stale", "clips_r2"]["severity"] == "warning"


@pytest.mark.parametrize("store", ["data/store/", "./data/store", "data/../data/store"])
def test_the_own_store_may_be_written_otherwise(bagger, project, rows, store):
    set_rounds(bagger, 1)
    told = bagger("audit", "--quick", "--json", "--store", store)
    assert told.out == bagger("audit", "--quick", "--json").out
    assert "stale" in told.out  # params.yaml is looked at
    interrupt(rows)
    assert "interrupted" in bagger("runs", "--store", store).out


def test_audit_looks_at_run_records(bagger, project, tiny):
    set_rounds(bagger, 2)
    runs = project / "data" / "runs"
    runs.mkdir()
    for name, digest in tiny.plans.items():
        (project / "data" / "plans" / f"{name}.json").write_text(json.dumps({"plan_digest": digest}))
    for one in tiny.runs:
        (runs / ("_".join(filter(None, (one["stage"], one["round"]))) + ".json")).write_text(json.dumps(one))
    assert bagger("audit", "--quick").status == 0
    (runs / "train_r1.json").unlink()
    told = bagger("audit", "--quick")
    assert told.status == 1
    assert "mend it with: dvc checkout --force data/runs/train_r1.json" in told.out
    shutil.rmtree(project / "data" / "plans")
    assert "error: plan (3)" in bagger("audit", "--quick").out


def test_audit_of_nothing_is_an_error(bagger, project):
    told = bagger("audit", "--store", "elsewhere")
    assert (told.status, told.err) == (
        1,
        "error: no tables in elsewhere; `dvc pull` fetches them, `dvc repro` makes them\n",
    )
    told = bagger("audit", "clips_r9")
    assert told.status == 1
    assert "dvc repro correct@r9" in told.err


def test_the_repair_mends_it(bagger, history, tmp_path, monkeypatch):
    shutil.copytree(history.root, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    before = json.loads(bagger("audit", "--quick", "--json").out)
    data = next(Path("data/store/seed.lance/data").iterdir())
    data.chmod(0o644)
    os.truncate(data, data.stat().st_size // 2)
    found = json.loads(bagger("audit", "--quick", "--json").out)
    (repair,) = [one["repair"] for one in found if (one["check"], one["table"]) == ("unreadable", "seed")]
    words = repair.split()
    assert words[0] == "dvc"
    done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    assert json.loads(bagger("audit", "--quick", "--json").out) == before


# ---------------------------------------------------------------- runs


def test_runs_that_ended_and_runs_that_did_not(bagger, project, rows):
    folder = interrupt(rows)
    every = json.loads(bagger("runs", "--json").out)
    assert {one["state"] for one in every} == {"ended", "interrupted"}
    assert next(one for one in every if one["run_id"] == "run-train-r1")["seconds"] == 1.5
    (open_run,) = json.loads(bagger("runs", "--unfinished", "--json").out)
    told = json.loads((folder / "run.json").read_text())
    assert (open_run["run_id"], open_run["begun_at"]) == (told["run_id"], told["begun_at"])
    assert (open_run["state"], open_run["rows"], open_run["resume"]) == ("interrupted", 2, "dvc repro rollout@r2")
    assert [one["stage"] for one in json.loads(bagger("runs", "--round", "r1", "--json").out)] == [
        "rollout", "rewrite", "score", "correct", "mix", "train",
    ]  # fmt: skip
    assert "no such runs" in bagger("runs", "--stage", "report").err
    with acquire_lock(Path(".work/rollout-r2.lock"), "rollout-r2"):
        assert [one.running for one in unfinished_runs()] == [True]
    assert [one.running for one in unfinished_runs()] == [False]


def test_the_command_that_continues_a_run_is_the_name_dvc_knows(project):
    for name in ("train-r0-0123456789abcdef", "seed-0123456789abcdef", "mine", "seed-0123"):
        (Path(".work") / name).mkdir(parents=True, exist_ok=True)
    assert [one.resume for one in unfinished_runs()] == ["dvc repro seed", "dvc repro train_r0"]


# ---------------------------------------------------------------- gc


def litter(project, rows) -> dict[str, Path]:
    """One of everything that gc knows."""
    made = {
        "sealing": project / "data/store/.sealing",
        "run": project / interrupt(rows),
        "revision": project / ".work/revisions/0123",
        "draft": project / "data/manifests/.seed.json.tmp",
        "record": project / "data/runs/train_r2.json",
    }
    (made["sealing"] / "clips_r1.lance").mkdir(parents=True)
    (made["sealing"] / "clips_r1.lance" / "data").write_bytes(b"x" * 1000)
    made["batch"] = made["run"] / "rollouts_r2.batches" / f".{'0' * 32}"
    made["batch"].write_bytes(b"x" * 10)
    made["revision"].mkdir(parents=True)
    made["draft"].touch()
    made["record"].parent.mkdir(exist_ok=True)
    made["record"].write_text("{}")
    catalog = lance.dataset(str(project / "data/store/catalog.lance"))
    catalog.delete("clip_id = 'clip-r1-0'")  # a version that no tag names, and one after it
    lance.dataset(catalog.uri).delete("clip_id = 'clip-r1-1'")
    return made


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_dry_run_lists_everything_and_deletes_nothing(bagger, project, rows):
    set_rounds(bagger, 1)
    made = litter(project, rows)
    before = tree(project)
    told = bagger("gc", "--dry-run", "--json")
    fates = {(one["kind"], one["fate"]) for one in json.loads(told.out)}
    assert fates == {
        ("half-sealed table", "delete"), ("draft", "delete"), ("draft", "yours"), ("revision", "delete"),
        ("versions", "delete"), ("unfinished run", "keep"), ("stale table", "yours"), ("stale run record", "yours"),
    }  # fmt: skip
    stale = {one["path"]: one["why"] for one in json.loads(told.out) if one["kind"] == "stale table"}
    assert set(stale) == {f"data/store/{base}_r2.lance" for base in ("rollouts", "rewrites", "scores", "clips")}
    assert stale["data/store/clips_r2.lance"] == "rm -r data/store/clips_r2.lance data/manifests/clips_r2.json"
    assert tree(project) == before
    assert all(path.exists() for path in made.values())


def test_gc_deletes_what_is_safe_alone(bagger, project, rows):
    set_rounds(bagger, 1)
    made = litter(project, rows)
    told = bagger("gc")
    assert told.status == 0
    assert "kB freed" in told.out
    assert {name for name, path in made.items() if path.exists()} == {"run", "draft", "record"}
    catalog = lance.dataset(str(project / "data/store/catalog.lance"))
    assert {one["version"] for one in catalog.versions()} == {1, 2, 3, 5}
    assert catalog.checkout_version("r1").count_rows() == 6
    assert (project / "data/store/clips_r2.lance").exists()
    assert bagger("gc", "--unfinished").status == 0
    assert not made["run"].exists()


def test_a_running_stage_is_left_alone(bagger, project, rows):
    made = litter(project, rows)
    with acquire_lock(Path(".work/rollout-r2.lock"), "rollout-r2"):
        bagger("gc", "--unfinished")
    assert {name for name, path in made.items() if path.exists()} >= {"run", "sealing", "batch"}


def test_nothing_goes_through_a_link(bagger, project, rows, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    (outside / "mine").write_text("mine")
    (project / ".work/revisions").mkdir(parents=True)
    os.symlink(outside, project / ".work/revisions/0123")
    os.symlink(outside, project / ".work/seed-0123456789abcdef")
    os.symlink(outside, project / "data/store/.sealing")
    assert bagger("gc", "--unfinished").status == 0
    assert (outside / "mine").exists()
    for path in (
        Path("data/manifests/seed.json"),
        Path(".work"),
        Path(".work/revisions/0123/mine"),
        Path("data/store"),
    ):
        with pytest.raises(StoreError, match="not deleted"):
            remove(Garbage("draft", path, 0, "delete"))
    with pytest.raises(StoreError, match="not deleted"):
        remove(Garbage("stale table", Path("data/store/clips_r2.lance"), 0, "yours"))
    assert (project / "data/manifests/seed.json").exists()


def test_a_work_folder_that_is_a_link_is_left_alone(project, rows, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    (outside / "seed-0123456789abcdef").mkdir()
    os.symlink(outside, project / ".work")
    assert garbage(None, unfinished=True) == []


# ---------------------------------------------------------------- migrate


def test_migrate_has_nothing_to_do_here(bagger, project):
    told = bagger("migrate")
    assert (told.status, told.out) == (0, f"data/store: all of it is of schema {SCHEMA_VERSION}; nothing to do\n")
    assert bagger("migrate", "--store", "s3://team/registry").status == 1

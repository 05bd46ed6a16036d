"""`bagger register`, `bagger registry` and --store on a registry, in a folder and on a real S3-speaking server."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from store import Store
from store.registry import register
from tests.s3 import KEY, SECRET

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bagger(bagger):
    """As everywhere, and whatever is said, no secret is told."""

    def run(*arguments: object) -> SimpleNamespace:
        told = bagger(*arguments)
        assert SECRET not in told.out + told.err
        assert KEY not in told.out + told.err
        return told

    return run


@pytest.fixture
def project(tiny, tmp_path, monkeypatch):
    """We stand in a project's folder called `reach`, a git repository with a dvc.lock; the store is the tiny one's."""
    folder = tmp_path / "reach"
    folder.mkdir()
    (folder / "dvc.lock").write_text("schema: '2.0'\n")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "data"]):
        author = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *author, *command], cwd=folder, check=True)
    monkeypatch.chdir(folder)
    return tiny


@pytest.mark.parametrize("place", ["folder", "s3"])
def test_register_then_ask_the_registry(bagger, project, tmp_path, request, place):
    if place == "s3":
        request.getfixturevalue("s3")
    uri = f"s3://team/{tmp_path.name}-cli" if place == "s3" else tmp_path / "registry"
    dry = bagger("register", "--to", uri, "--store", project.store, "--dry-run")
    rows = "4 seed, 4 rollouts, 4 rewrites, 4 scores, 4 clips, 16 runs, 15 uses, 8 catalog"
    assert dry.err == f"{uri}: would write {rows}\n"
    assert bagger("registry", "--store", uri).err.startswith(f"error: nothing is registered in {uri}; `bagger register")

    told = bagger("register", "--to", uri, "--store", project.store)
    assert (told.status, told.out) == (0, dry.out)
    assert told.out.splitlines() == [
        "experiment  round  state  clips",
        "reach       r0     new        4",
        "reach       r1     new        2",
        "reach       r2     new        2",
    ]
    assert "registering" in told.err
    assert told.err.endswith(f"{uri}: wrote {rows}\n")
    again = bagger("register", "--to", uri, "--store", project.store, "--json")
    assert {one["state"] for one in json.loads(again.out)} == {"same"}
    assert again.err == f"{uri}: nothing to write, all of it is there\n"

    for command in (
        ["clips", "--sort", "-drift", "--columns", "clip_id,prompt"],
        ["clips", "--where", "drift > 0.5", "--columns", "clip_id,drift"],
    ):
        assert bagger(*command, "--store", uri).out == bagger(*command, "--store", project.store).out
    bagger("export", "clip-r2-0", "--store", uri, "--out", tmp_path / "clip.mp4")
    assert (tmp_path / "clip.mp4").read_bytes() == b"mp4 of clip-r2-0"
    listed = bagger("registry", "--store", uri, "--json")
    assert len(json.loads(listed.out)) == 3


def test_what_was_registered_is_recorded_with_commit_lock_and_manifests(bagger, project, tmp_path):
    bagger("register", "--to", tmp_path / "registry", "--store", project.store, "--round", "r1")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    listed = bagger("registry", "--store", tmp_path / "registry")
    lines = listed.out.splitlines()
    assert re.fullmatch(rf"reach +r1 +2  \d{{4}}-\d\d-\d\dT[\d:]+\+00:00  {commit[:12]}  complete", lines[2])
    rows = json.loads(bagger("registry", "--store", tmp_path / "registry", "--json").out)
    assert [one["round"] for one in rows] == ["r0", "r1"]
    assert {one["git_commit"] for one in rows} == {commit}
    assert all(re.fullmatch("[0-9a-f]{64}", one["dvc_lock"]) for one in rows)
    sealed = {one.stem: json.loads(one.read_text())["digest"] for one in (project.root / "manifests").glob("*.json")}
    assert json.loads(rows[1]["manifests"]) == sealed
    assert len(sealed) == 9


def test_refusals_are_one_line_that_says_what_to_do(bagger, project, tmp_path, tiny_copy, rows):
    uri = tmp_path / "registry"
    bagger("register", "--to", uri, "--store", project.store)
    (tiny_copy.root / "work").rename(tiny_copy.root / "work-before")
    rows.seal(tiny_copy.root, "clips_r2", rows.clips("r2", tiny_copy.models["r1"])[:1])
    stale = bagger("register", "--to", uri, "--store", tiny_copy.store)
    assert stale.status == 1
    assert "catalog and clips_r2 of" in stale.err
    assert "dvc repro catalog" in stale.err
    assert bagger("register", "--to", uri, "--store", project.store, "--name", "a b").status == 1
    unknown = bagger("register", "--to", uri, "--store", project.store, "--round", "r9")
    assert unknown.err == "error: no round 'r9' in the catalog; it holds r0, r1, r2\n"


def test_nothing_secret_is_ever_printed(s3, project, tmp_path, bagger):
    """Whatever goes wrong, also with --traceback and in a process of its own, where Lance may write by itself."""
    plain = bagger("clips", "--store", "s3://nobody/registry")
    assert plain.err == (
        f"error: the S3 server {s3.endpoint} has no bucket 'nobody'; make it, or correct the address; "
        "AWS_ENDPOINT_URL names the server\n"
    )

    def told(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
        code = "from flows.cli import main; main()"
        return subprocess.run(
            [sys.executable, "-c", code, "--traceback", *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "RUST_LOG": "warn", **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )

    store = ["--store", project.store]
    cases = [
        told("register", "--to", "s3://nobody/registry", *store),
        told("clips", "--store", "s3://team/none"),
        told("register", "--to", "s3://team/registry", *store, AWS_ENDPOINT_URL="http://me:hidden@127.0.0.1:1"),
    ]
    said = ["has no bucket 'nobody'", "nothing is registered there", "cannot reach the S3 server http://127.0.0.1:1"]
    for case, words in zip(cases, said, strict=True):
        assert case.returncode == 1
        last = case.stderr.splitlines()[-1]
        assert last.startswith("error: ")
        assert words in last
        for secret in (SECRET, KEY, "hidden", "Signature", "Credential="):
            assert secret not in case.stdout + case.stderr
        assert "Traceback" in case.stderr


def test_a_registration_that_was_stopped_is_listed_as_unfinished(bagger, project, tmp_path):
    """Its claim is there and its entries are not, as after a kill between the two."""
    import lance

    uri = tmp_path / "registry"
    register(Store(project.store), uri, "reach")
    lance.dataset(str(uri / "catalog.lance")).delete("round = 'r2'")
    states = {one["round"]: one["state"] for one in json.loads(bagger("registry", "--store", uri, "--json").out)}
    assert states == {"r0": "complete", "r1": "complete", "r2": "unfinished"}
    assert "r2     new" in bagger("register", "--to", uri, "--store", project.store).out
    assert "unfinished" not in bagger("registry", "--store", uri).out


def test_help_teaches(bagger):
    told = bagger("register", "--help").out
    for word in ("s3://team/registry", "AWS_ENDPOINT_URL", "--dry-run", "--replace", "Examples:"):
        assert word in told

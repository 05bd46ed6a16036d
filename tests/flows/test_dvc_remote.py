"""The store goes to S3 and comes back, by `dvc push` and `dvc pull`, through the registry's server of tests/s3.py."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from store import Store
from store.manifest import read_manifest, write_manifest
from store.table import content_manifest, table_names
from tests.s3 import KEY, SECRET


@pytest.fixture
def project(tiny_copy, s3, tmp_path):
    """A git and DVC project whose outs are the tiny store's tables and plans, as dvc.yaml has them, with a remote."""
    root = tmp_path / "project"
    (root / "data").mkdir(parents=True)
    shutil.move(tiny_copy.store, root / "data/store")
    shutil.move(tiny_copy.root / "manifests", root / "data/manifests")
    write_manifest(tiny_copy.manifest, root / "data/catalog.json")
    git(root, "init", "-q")
    dvc(root, "init", "-q")
    dvc(root, "config", "core.analytics", "false")
    dvc(root, "remote", "add", "-d", "team", f"s3://team/{tmp_path.name}")
    dvc(root, "remote", "modify", "team", "endpointurl", s3.endpoint)
    dvc(root, "add", "-q", *(f"data/store/{name}.lance" for name in table_names(root / "data/store")))
    git(root, "add", ".")
    git(root, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "data")
    return root


def git(root: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=root, check=True)


def dvc(root: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "dvc", *arguments]
    environment = os.environ | {"DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(root.parent / "site")}
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=100, env=environment)
    assert done.returncode == 0, done.stderr
    assert SECRET not in done.stdout + done.stderr
    return done.stdout


def test_push_then_pull_into_an_empty_clone_brings_every_table_back(project, s3, tmp_path):
    names = table_names(project / "data/store")
    assert len(names) == 12
    before = {name: content_manifest(project / "data/store", name) for name in names}
    asked = Store(project / "data/store").clips(kind="all", at="r1").to_pylist()
    assert len(asked) == 6
    found = audited(project)
    # The tiny store's videos are no videos; of its tables nothing is to be said.
    assert [one for one in found if one["check"] != "undecodable"] == []
    dvc(project, "push")
    pushed = s3.client().list_objects_v2(Bucket="team", Prefix=f"{tmp_path.name}/")["KeyCount"]
    assert pushed >= len(names) * 3  # of each table at least data, version and transaction

    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(project), str(clone))
    for gone in (project / ".dvc/cache", project / "data/store"):
        shutil.rmtree(gone)
    for root in (project, clone):
        assert table_names(root / "data/store") == []
        git(root, "checkout", "-q", "--", ".")  # the .dvc files that stood among the tables
        dvc(root, "pull", "-q")
        assert table_names(root / "data/store") == names
        store = root / "data/store"
        assert {name: content_manifest(store, name) for name in names} == before
        for path in (root / "data/manifests").glob("*.json"):
            assert read_manifest(path) == before[path.stem]
        assert Store(store).clips(kind="all", at="r1").to_pylist() == asked
        assert Store(store).video("clip-r2-0")["video"] == b"mp4 of clip-r2-0"
    assert audited(clone) == found
    assert dvc(clone, "status", "--cloud").strip() == "Cache and remote 'team' are in sync."


def test_one_table_can_be_pulled_alone_and_no_file_holds_the_credentials(project, tmp_path):
    """What is committed names the server and the bucket alone; the keys come from the environment."""
    dvc(project, "push", "-q", "data/store/catalog.lance.dvc")
    texts = [path.read_text(errors="replace") for path in (project / ".dvc").rglob("*") if path.is_file()]
    assert any("endpointurl" in one for one in texts)
    assert not any(SECRET in one or KEY in one for one in texts)
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(project), str(clone))
    dvc(clone, "pull", "-q", "data/store/catalog.lance.dvc")
    assert table_names(clone / "data/store") == ["catalog"]
    assert Store(clone / "data/store").clips(round="r2").num_rows == 2


def audited(root: Path) -> list[dict]:
    """What `bagger audit` finds, without paths."""
    code = "from flows.cli import main; main(['audit', '--json'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=100)
    assert done.stdout, done.stderr
    return json.loads(done.stdout.replace(str(root), "ROOT"))

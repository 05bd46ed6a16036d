"""Earlier states of the data by git revision, on a real project of git and DVC."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import lance
import pytest

from flows.revisions import RevisionError, open_revision
from store.errors import StoreError
from store.schema import RUNS, VERSION_KEY
from store.table import table_names

ROOT = Path(__file__).parents[2]
FIRST = ["clip-r1-0", "clip-r1-1", "clip-r2-0", "clip-r2-1"]
SECOND = ["clip-r1-0", "clip-r1-1", "clip-r2-0", "clip-r2-2"]


@pytest.fixture
def project(history, monkeypatch):
    """The project as the current folder, nothing brought yet."""
    shutil.rmtree(history.root / ".work", ignore_errors=True)
    monkeypatch.chdir(history.root)
    return history


@pytest.fixture
def clone(history, tmp_path, monkeypatch):
    """A fresh clone of it as the current folder: no data, an empty cache, the same remote."""
    subprocess.run(["git", "clone", "-q", history.root, tmp_path / "clone"], check=True)
    monkeypatch.chdir(tmp_path / "clone")
    return tmp_path / "clone"


def ids(store) -> list[str]:
    return store.clips(columns=["clip_id"])["clip_id"].to_pylist()


def state(root: Path) -> dict[str, tuple[str, int]]:
    """Every file of the project, git's index and DVC's files among them, but for what is git-ignored work."""
    left_out = (root / ".work", root / ".dvc" / "tmp")
    return {
        str(path.relative_to(root)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in root.rglob("*")
        if path.is_file() and not any(one in path.parents for one in left_out)
    }


def python(code: str, *arguments: str) -> subprocess.Popen:
    """A fresh Python in the current folder."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def brought(root: Path) -> list[str]:
    """What lies in the folders of revisions."""
    return sorted(path.name for path in (root / ".work").glob("revisions/*/data/store/*"))


def test_a_revision_is_asked_like_a_store_and_the_work_tree_stays_as_it_is(project):
    before = state(project.root)
    first, now = open_revision("first", "data/store"), open_revision("HEAD", "data/store")
    assert brought(project.root) == []  # nothing is brought that is not asked
    assert (ids(first), ids(now)) == (FIRST, SECOND)
    assert brought(project.root) == ["catalog.lance", "catalog.lance"]
    assert first.video("clip-r1-0")["video"] == b"mp4 of clip-r1-0"
    assert first.clips(round="r2", at="r2", columns=["drift"])["drift"].to_pylist() == pytest.approx([0.4, 0.1])
    assert now.clips(round="r2", columns=["drift"])["drift"].to_pylist() == pytest.approx([1.4, 0.2])
    assert first.lineage("clip-r2-1")["parents"][0]["id"] == "rollout-r2-1"
    assert state(project.root) == before


def test_names_are_those_recorded_though_nothing_is_there_yet(project, tiny):
    store = open_revision("first", "data/store")
    assert store.names() == table_names(tiny.store)
    assert store.tables("clips") == ["clips_r1", "clips_r2"]
    assert brought(project.root) == []
    with pytest.raises(
        StoreError, match=r"revision first \(\w{7}\) has no table 'clips_r3' in data/store, did you mean"
    ):
        store.open("clips_r3")
    assert not store.has("clips_r3")
    assert store.has("runs")
    assert brought(project.root) == ["runs.lance"]


@pytest.mark.parametrize("folder", [".", "data", ".."])
def test_what_a_revision_may_be_called(project, monkeypatch, folder):
    monkeypatch.chdir(folder)
    uri = os.path.relpath(project.store)
    for rev in ("first", "HEAD~1", "main^", "refs/tags/first", project.first, project.first[:9], "@^{/first}"):
        assert project.first in open_revision(rev, uri).uri
    for rev in ("HEAD", "main", "second", "warm-fox", "@"):
        assert project.second in open_revision(rev, uri).uri
    assert Path(open_revision("HEAD", uri).uri).is_relative_to(project.root / ".work" / "revisions")


@pytest.mark.parametrize(
    "rev",
    ["--upload-pack=touch hacked", "--output=hacked", "-h", "--", "", " ", "^HEAD", "HEAD..first", "first\n", "a\0b",
     "HEAD:dvc.lock", "$(touch hacked)", "../first", "HEAD first", "\x1b[31m", "x" * 5000],
)  # fmt: skip
def test_what_is_no_revision_is_refused_and_harmless(project, rev):
    before = state(project.root)
    with pytest.raises(RevisionError, match="git knows no commit, branch, tag or experiment") as refused:
        open_revision(rev, "data/store")
    assert str(refused.value).isprintable()
    assert state(project.root) == before
    assert not (project.root / ".work").exists()


def test_mistakes_are_told_what_is_near(project, tmp_path, monkeypatch):
    for wrong, near in (("frist", "first"), ("mian", "main"), ("warm-fux", "warm-fox"), ("HAED", "HEAD")):
        with pytest.raises(RevisionError, match=f"experiment '{wrong}'; nearest: {near}"):
            open_revision(wrong, "data/store")
    with pytest.raises(RevisionError, match=r"revision empty \(\w{7}\) has no dvc.lock: DVC recorded no data there"):
        open_revision("empty", "data/store").clips()
    with pytest.raises(StoreError, match="has no table 'catalog' in data/elsewhere, nor any other"):
        open_revision("first", "data/elsewhere").clips()
    with pytest.raises(RevisionError, match="the registry s3://team/store has none"):
        open_revision("first", "s3://team/store")
    with pytest.raises(RevisionError, match="lies in no DVC project"):
        open_revision("first", str(tmp_path / "store"))
    (tmp_path / "plain" / ".dvc").mkdir(parents=True)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    with pytest.raises(RevisionError, match="plain is not in a git repository"):
        open_revision("first", str(tmp_path / "plain" / "store"))


def test_an_experiment_s_name_that_two_have_is_refused(project):
    other = f"refs/exps/{project.first[:2]}/{project.first[2:]}/warm-fox"
    subprocess.run(["git", "update-ref", other, project.first], check=True)
    try:
        with pytest.raises(RevisionError, match="the name of several experiments; give one's commit: "):
            open_revision("warm-fox", "data/store")
    finally:
        subprocess.run(["git", "update-ref", "-d", other], check=True)


def test_a_table_of_an_older_schema_is_refused(project):
    store = open_revision("first", "data/store")
    older = RUNS.with_metadata({VERSION_KEY: b"1"}).empty_table()
    lance.write_dataset(older, f"{store.uri}/runs.lance")
    with pytest.raises(StoreError, match=r"table runs of revision first \(\w{7}\) was written by an older bagger"):
        store.open("runs")


def test_a_folder_that_cannot_be_made_is_named(project):
    (project.root / ".work").write_text("not a folder")
    try:
        with pytest.raises(
            RevisionError, match="where the tables of revision first .* cannot be made: Not a directory"
        ):
            open_revision("first", "data/store").clips()
    finally:
        (project.root / ".work").unlink()


COUNT = """
import sys
from flows.revisions import open_revision
print(open_revision(sys.argv[1], "data/store").clips().num_rows, "dvc" in sys.modules)
"""


def test_dvc_is_imported_once_and_two_processes_at_once_are_fine(project):
    both = [python(COUNT, "first") for _ in range(2)]
    told = [one.communicate(timeout=100) for one in both]
    assert {out for out, _ in told} <= {"4 True\n", "4 False\n"}, told  # the one may find what the other brought
    assert brought(project.root) == ["catalog.lance"]
    again = python(COUNT, "first").communicate(timeout=100)
    assert again == ("4 False\n", "")


KILLED = """
import os, signal
import flows.revisions
flows.revisions.os.rename = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
flows.revisions.open_revision("first", "data/store").clips()
"""


def test_killed_before_the_last_step_leaves_nothing_that_looks_whole(project):
    process = python(KILLED)
    assert process.communicate(timeout=100)[0] == ""
    assert process.returncode == -9
    left = brought(project.root)
    assert [name[:9] for name in left] == [".catalog."]
    assert left[0].endswith(".part")
    assert ids(open_revision("first", "data/store")) == FIRST


def test_a_clone_without_data_asks_the_remote_table_by_table(clone, history):
    before = state(clone)
    store = open_revision("first", "data/store")
    assert ids(store) == FIRST
    assert brought(clone) == ["catalog.lance"]
    gained = {path for path in state(clone) if path not in before}
    assert not (clone / "data").exists()
    assert all(path.startswith(".dvc/cache/") for path in gained)  # what DVC's remote gives, its cache may keep
    # The second state was never pushed: the message names the command that brings it where it was.
    with pytest.raises(
        RevisionError, match=r"data/store/catalog.lance of revision HEAD .* `dvc fetch --all-commits data/store/catalog"
    ):
        open_revision("HEAD", "data/store").clips()
    assert brought(clone) == ["catalog.lance"]


def test_cache_and_remote_are_those_of_now(clone, history):
    """Not those that the commit knew: a remote moves, and is often set up after the first commits."""
    for url, known in ((clone.parent / "nothing", False), (history.remote, True)):
        (clone / ".dvc" / "config").write_text(f"[core]\n    remote = there\n['remote \"there\"']\n    url = {url}\n")
        store = open_revision("first", "data/store")
        if known:
            assert ids(store) == FIRST
        else:
            with pytest.raises(RevisionError, match="nor could a remote give it"):
                store.clips()


def test_a_cache_with_a_hole_gives_no_table(clone, history):
    """One file of a table is in neither cache nor remote."""
    shutil.copytree(history.remote, clone.parent / "holed")
    (clone / ".dvc" / "config.local").write_text(f"['remote \"here\"']\n    url = {clone.parent / 'holed'}\n")
    store = open_revision("first", "data/store")
    store.open("runs")
    [data] = (history.root / "data/store/clips_r1.lance/data").glob("*.lance")
    digest = hashlib.md5(data.read_bytes()).hexdigest()
    hole = clone.parent / "holed" / "files" / "md5" / digest[:2] / digest[2:]
    hole.unlink()
    with pytest.raises(RevisionError, match="is not whole in DVC's cache, nor could a remote give it"):
        store.open("clips_r1")
    assert brought(clone) == ["runs.lance"]

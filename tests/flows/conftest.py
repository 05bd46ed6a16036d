"""What tests of commands and cards share: running a command line, a small project of git and DVC, a publication."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from flows.cli import main
from store import Store
from store.catalog import build_catalog
from store.publication import Publication
from store.shards import write_round
from store.table import table_names

GIT = {f"GIT_{role}_{what}": value for role in ("AUTHOR", "COMMITTER")
       for what, value in (("NAME", "test"), ("EMAIL", "test@example.org"))}  # fmt: skip


def git(root: Path, *words: str) -> str:
    env = {**os.environ, **GIT}
    return subprocess.run(["git", *words], cwd=root, env=env, check=True, capture_output=True, text=True).stdout.strip()


def dvc(root: Path, *words: str) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("DVC_")}
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *words], cwd=root, env={**env, **GIT, "DVC_NO_ANALYTICS": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, f"dvc {' '.join(words)}:\n{done.stdout}\n{done.stderr}"


@pytest.fixture
def bagger(capsys):
    """Runs a command line in this process: status, stdout, stderr."""

    def run(*arguments: object) -> SimpleNamespace:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main([str(one) for one in arguments])
        told = capsys.readouterr()
        return SimpleNamespace(status=end.value.code, out=told.out, err=told.err)

    return run


@pytest.fixture(scope="session")
def history(tiny, rows, tmp_path_factory) -> SimpleNamespace:
    """A project whose data/store was two things: read only, but for its .work.

    empty: before any data (tag `empty`). first: the tiny store (tag `first`), pushed to the remote. second: the branch
    `main` and the experiment `warm-fox`, never pushed: of round r2, clip-r2-0 drifts by 1.4, not 0.4, clip-r2-1 is gone
    and clip-r2-2 is new.
    """
    root, remote = (tmp_path_factory.mktemp("history") / name for name in ("project", "remote"))
    store = root / "data" / "store"
    outs = "".join(f"    - data/store/{name}.lance\n" for name in table_names(tiny.store))
    root.mkdir()
    git(root, "init", "-q", "-b", "main")
    dvc(root, "init", "-q")
    (root / ".dvc" / "config").write_text(f"[core]\n    remote = here\n['remote \"here\"']\n    url = {remote}\n")
    (root / ".gitignore").write_text("/data/\n/.work/\n")
    (root / "dvc.yaml").write_text(f"stages:\n  tables:\n    cmd: 'true'\n    outs:\n{outs}")

    def commit(message: str) -> str:
        git(root, "add", "-A")
        git(root, "commit", "-q", "-m", message)
        git(root, "tag", message)
        return git(root, "rev-parse", "HEAD")

    empty = commit("empty")
    shutil.copytree(tiny.store, store)
    dvc(root, "commit", "-f", "-q", "tables")
    first = commit("first")
    dvc(root, "push", "-q")
    clips, scores = rows.clips("r2", tiny.models["r1"]), rows.scores("r2")
    scores[0] |= {"drift": 1.4, "drift_motion": 2.5, "drift_part": "speeding-up", "drift_parts": "speeding-up"}
    scores[1] |= {"rollout_id": "rollout-r2-2", "drift": 0.2}
    clips[1] |= {"clip_id": "clip-r2-2", "rollout_id": "rollout-r2-2", "prompt": "a new \x1b[31mone"}
    rows.seal(root / "data", "scores_r2", scores)
    rows.seal(root / "data", "clips_r2", clips)
    build_catalog(store, ["r1", "r2"], tiny.runs, {"r0": tiny.files["r0"], "r1": tiny.files["r1"]})
    dvc(root, "commit", "-f", "-q", "tables")
    second = commit("second")
    git(root, "update-ref", f"refs/exps/{second[:2]}/{second[2:]}/warm-fox", second)
    shutil.rmtree(root / "data" / "work")
    return SimpleNamespace(root=root, store=store, remote=remote, empty=empty, first=first, second=second)


@pytest.fixture(scope="session")
def published(tiny, tmp_path_factory) -> tuple[Path, Publication]:
    """Files of all rounds of the tiny store, and their publication."""
    folder = tmp_path_factory.mktemp("published")
    return folder, Publication({}).with_rounds(*(write_round(Store(tiny.store), k, folder) for k in ("r0", "r1", "r2")))


@pytest.fixture(scope="session")
def whole(published) -> Publication:
    return published[1]

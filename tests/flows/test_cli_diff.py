"""`bagger diff` as people use it: tags, git revisions, experiments of a registry."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from store import Store
from store.dataset import write_fresh
from store.schema import REGISTRY_CATALOG

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(history, monkeypatch):
    monkeypatch.chdir(history.root)
    return history


def counts(told: SimpleNamespace) -> dict[str, int]:
    assert told.status == 0, told.err
    return json.loads(told.out)[0]


def test_tags_of_the_catalog(bagger, tiny):
    told = bagger("diff", "r1", "r2", "--store", tiny.store)
    assert (told.status, told.err) == (0, "")
    lines = told.out.splitlines()
    assert lines[:3] == ["A  r1: 6 clips", "B  r2: 8 clips", "2 added, 0 removed, 0 changed, 6 unchanged"]
    table = [line.split() for line in lines if line.startswith("drift ")]
    assert [(one[1], one[2], one[3]) for one in table] == [
        ("A", "2", "0.75"),
        ("B", "4", "0.5"),
        ("added", "2", "0.25"),
    ]
    assert ["r2", "0", "-", "2", "0.25", "2", "0.25"] in [line.split() for line in lines]
    assert lines[-3:] == [
        "clip_id    change  round  drift_b  prompt",
        "clip-r2-0  added   r2         0.4  a red disc moves right, it's number 0",
        "clip-r2-1  added   r2         0.1  a red disc moves right, it's number 1",
    ]


def test_git_revisions_and_what_there_is_now(bagger, project):
    told = bagger("diff", "first", "HEAD")
    assert told.status == 0, told.err
    assert told.out.startswith("A  first: 8 clips\nB  HEAD: 8 clips\n1 added, 1 removed, 1 changed, 6 unchanged\n")
    header, changed, *others = told.out.splitlines()[-4:]
    assert header.split() == "clip_id change round drift_a drift_b drift_change columns prompt".split()
    assert changed.split()[:6] == ["clip-r2-0", "changed", "r2", "0.4", "1.4", "1"]
    assert "drift_motion drift drift_part drift_parts" in changed
    assert [one.split()[:2] for one in others] == [["clip-r2-2", "added"], ["clip-r2-1", "removed"]]
    assert "\x1b" not in told.out  # clip-r2-2's prompt holds one

    def summary(*arguments):
        found = counts(bagger("diff", *arguments, "--summary", "--json"))
        return tuple(found[name] for name in ("a", "b", "added", "removed", "changed"))

    assert summary("first", "HEAD") == summary("first", ".") == summary("first") == (8, 8, 1, 1, 1)
    assert summary("warm-fox") == summary("HEAD") == (8, 8, 0, 0, 0)
    assert summary("HEAD:r1", "HEAD:r2") == summary("r1", "r2") == summary(".:r1", ".") == (6, 8, 2, 0, 0)
    assert summary("first:r1", "r1") == (6, 6, 0, 0, 0)
    assert summary("first:r2", "r1") == (8, 6, 0, 2, 0)


def test_json_is_flat_and_has_both_values_of_what_changed(bagger, project):
    told = bagger("diff", "first", "--json")
    found = {one["clip_id"]: one for one in json.loads(told.out)}
    assert {type(value) for one in found.values() for value in one.values()} <= {str, int, float, type(None)}
    changed = found["clip-r2-0"]
    assert changed["change"] == "changed"
    assert changed["columns"] == "drift_motion drift drift_part drift_parts"
    assert (changed["a.drift"], changed["b.drift"]) == (0.4, 1.4)
    assert (changed["a.drift_part"], changed["b.drift_part"]) == ("over-saturating", "speeding-up")
    assert not [name for name in found["clip-r2-2"] if "." in name]
    rows = json.loads(bagger("diff", "first", "--json", "--summary").out)
    assert {one["row"] for one in rows} == {"counts", "distribution", "histogram"}
    assert {type(value) for one in rows for value in one.values()} <= {str, int, float, type(None)}
    [side] = [one for one in rows if one.get("side") == "B" and (one["by"], one["part"]) == ("all", "drift_motion")]
    assert side["max"] == 2.5


def test_what_is_listed_and_in_which_order(bagger, project):
    def ids(*arguments):
        return [one["clip_id"] for one in json.loads(bagger("diff", "first", "--json", *arguments).out)]

    assert ids() == ["clip-r2-0", "clip-r2-2", "clip-r2-1"]
    assert ids("--only", "added") == ["clip-r2-2"]
    assert ids("--sort", "clip_id", "--limit", 2) == ["clip-r2-0", "clip-r2-1"]
    assert ids("--sort", "-clip_id") == ["clip-r2-2", "clip-r2-1", "clip-r2-0"]
    told = bagger("diff", "first", "--limit", 1)
    assert "Clips, 1 of 3; --limit shows more\n" in told.out
    assert "clip-r2-2" not in told.out
    assert "Clips removed\n" in bagger("diff", "first", "--only", "removed").out
    assert "clip-r2" not in bagger("diff", "first", "--summary").out


def test_the_status_tells_a_difference_only_if_asked(bagger, project):
    assert bagger("diff", "first").status == 0
    assert bagger("diff", "first", "--exit-code", "--summary").status == 3
    assert bagger("diff", "first", "--exit-code", "--json").status == 3
    told = bagger("diff", "HEAD", "--exit-code")
    assert (told.status, told.out.splitlines()[-1]) == (0, "0 added, 0 removed, 0 changed, 8 unchanged")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["r9"], "no tag 'r9' in the catalog, which has r0, r1, r2; and git knows no commit"),
        (["frist"], "git knows no commit, branch, tag or experiment 'frist'; nearest: first"),
        (["first:r9"], "no tag 'r9' in the catalog of "),
        (["empty"], "has no dvc.lock"),
        (["--", "--upload-pack=x"], "git knows no commit"),
        (["first", "--sort", "drfit_a"], "did you mean 'drift_a'"),
        (["first", "--only", "chnaged"], "did you mean 'changed'"),
        (["first", "--limit", "-1"], "limit must be 0 or more"),
        (["first", "--store", "data/elsewhere"], "no table 'catalog' in data/elsewhere"),
    ],
)
def test_mistakes_end_in_one_line(bagger, project, arguments, said):
    told = bagger("diff", *arguments)
    assert (told.status, told.out) == (1, "")
    assert told.err.splitlines()[-1].startswith("error: ")
    assert said in told.err


def test_outside_of_git_tags_do_all_the_same(bagger, tiny):
    assert bagger("diff", "r1", "--store", tiny.store).status == 0
    told = bagger("diff", "main", "--store", tiny.store)
    assert (told.status, told.out) == (1, "")
    assert "lies in no DVC project" in told.err


def test_experiments_of_a_registry(bagger, tiny, tmp_path):
    whole = Store(tiny.store).open("catalog").to_table()
    pieces = []
    for name, rounds in (("base", ("r0", "r1", "r2")), ("team/warm", ("r0", "r1"))):
        rows = whole.filter(pc.is_in(whole["round"], pa.array(rounds)))
        entries = pa.array([f"{name}/{one}" for one in rows["clip_id"].to_pylist()])
        columns = [entries, pa.array([name] * len(entries)), *rows.columns]
        pieces.append(pa.Table.from_arrays(columns, schema=REGISTRY_CATALOG))
    write_fresh(pa.concat_tables(pieces).to_batches(), REGISTRY_CATALOG, tmp_path / "catalog.lance")
    told = bagger("diff", "team/warm", "base", "--store", tmp_path)
    assert told.out.startswith("A  team/warm: 6 clips\nB  base: 8 clips\n2 added, 0 removed, 0 changed, 6 unchanged\n")
    assert counts(bagger("diff", "team/warm/r1", "base/r1", "--json", "--summary", "--store", tmp_path))["added"] == 0
    told = bagger("diff", "bsae", "base", "--store", tmp_path)
    assert (told.status, told.out) == (1, "")
    assert "did you mean 'base'" in told.err
    assert "say which experiment's clips, of base, team/warm" in bagger("diff", "base", "--store", tmp_path).err


def test_a_terminal_of_few_letters_gets_plain_bars(tiny):
    for encoding, letters in (("ascii", ".:-=+*#% "), ("utf-8", "▁▂▃▄▅▆▇█ ")):
        told = subprocess.run(
            [sys.executable, "-c", "from flows.cli import main; main()", "diff", "r0", "r2", "--store", tiny.store],
            cwd=ROOT, capture_output=True, timeout=60, env={**os.environ, "PYTHONIOENCODING": encoding},
        )  # fmt: skip
        assert (told.returncode, told.stderr) == (0, b"")
        lines = [line for line in told.stdout.decode(encoding).splitlines() if line.startswith("drift ")]
        bars = [re.sub(r"drift +(B|added)( +[0-9.]+){5} +", "", line) for line in lines]
        assert len(bars) == 2
        assert set("".join(bars)) <= set(letters)
        assert letters[7] in bars[0]


def test_an_empty_name_is_no_revision(bagger, tiny):
    """A shell's unset variable must not mean "now", which never differs from now."""
    told = bagger("diff", "", "--store", tiny.store, "--exit-code")
    assert told.status == 1
    assert "a name is empty" in told.err

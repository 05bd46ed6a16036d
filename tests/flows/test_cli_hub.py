"""`bagger publish`, `publish-model` and `fetch` from the command line."""

import json

import pytest

from flows.cli import main
from tests.flows.test_publish import NAME, here, project, world

__all__ = ["here", "project", "world"]


@pytest.fixture
def bagger(capsys):
    """Runs a command: (status, standard output, standard error)."""

    def run(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(words)
        told = capsys.readouterr()
        return int(ended.value.code or 0), told.out, told.err

    return run


ALLOW = ("--allow-license", "none")


def test_publish_then_fetch(hub, project, bagger, tmp_path, monkeypatch):
    status, out, said = bagger("publish", "--round", "r1", "--repo", NAME, "--dry-run", "--json", *ALLOW)
    rows = json.loads(out)
    assert status == 0
    assert all(one["new"] for one in rows)
    assert "data/r1/corrective-00000-of-00001.parquet" in {one["file"] for one in rows}
    assert f"{NAME}: would upload {len(rows)} of {len(rows)} files" in said
    status, _, said = bagger("publish", "--round", "r1", "--repo", NAME, *ALLOW)
    head = hub.repo("datasets", NAME).head
    assert status == 0
    assert f"{NAME}: published as {head[:12]}" in said
    assert f"{NAME}: was published already as {head[:12]}" in bagger("publish", "--round", "r1", "--repo", NAME)[2]
    said = bagger("publish", "--round", "r1", "--repo", NAME, "--filter", "drift > 0.7")[2]
    assert f"the tag r1 stays at {head[:12]}; --retag moves it here" in said
    monkeypatch.chdir(tmp_path)
    status, out, said = bagger("fetch", NAME, "--revision", "r1", "--store", "there/store")
    assert status == 0
    assert out.split() == ["round", "clips", "r1", "2"]
    assert f"{NAME} at {head[:12]}: 4 tables written" in said
    assert "it was all here" in bagger("fetch", NAME, "--revision", "r1", "--store", "there/store")[2]


def test_a_folder(project, bagger, tmp_path):
    status, _, said = bagger("publish", "--round", "r2", "--out", str(tmp_path / "out"), *ALLOW)
    assert status == 0
    assert "files written" in said
    assert (tmp_path / "out" / "README.md").read_text().startswith("---\n")
    assert "it is all there" in bagger("publish", "--round", "r2", "--out", str(tmp_path / "out"), *ALLOW)[2]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("publish", "--round", "r1"), "say --repo ORG/NAME to publish, or --out DIR"),
        (("publish", "--round", "r1", "--repo", NAME, "--out", "x"), "say --repo ORG/NAME to publish, or --out DIR"),
        (("publish", "--round", "r1", "--out", "x", "--dry-run"), "leave out --dry-run"),
        (("publish", "--round", "r1", "--repo", "clips"), "a repository is called ORG/NAME"),
        (("publish", "--round", "r9", "--repo", NAME), "no round 'r9'"),
        (("publish", "--round", "r1", "--repo", NAME, "--include-seed"), "--allow-license none"),
        (("publish-model", "--round", "r1"), "say --repo ORG/NAME"),
        (("publish-model", "--round", "r1", "--repo", "lab/model"), "models/r1: no model"),
        (("fetch", "lab/none"), "no dataset lab/none"),
    ],
)
def test_errors_are_one_clear_line(hub, project, bagger, words, said):
    status, out, err = bagger(*words)
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert said in err


def test_without_a_token(hub, project, bagger, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    status, _, err = bagger("publish", "--round", "r1", "--repo", NAME, *ALLOW)
    assert status == 1
    assert "takes a token: log in with `hf auth login`, or set HF_TOKEN" in err


@pytest.mark.parametrize("command", ["publish", "publish-model", "fetch"])
def test_help_teaches(bagger, command):
    status, out, _ = bagger(command, "--help")
    assert status == 0
    assert "Examples:" in out
    assert "hf auth login" in out

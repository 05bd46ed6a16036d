"""A model published to a server that speaks the Hub's protocol, and loaded by plain diffusers in a fresh process."""

import json
import shutil
from pathlib import Path

import pytest

from flows.publish_model import ModelError, Request, to_hub
from store.hub import HubError
from store.published import publications
from tests.flows.test_publish import fresh

NAME = "lab/model"
LOAD = """
import sys
from diffusers import WanPipeline

pipe = WanPipeline.from_pretrained("lab/model", revision="r1")
print(type(pipe.transformer).__name__, pipe.transformer.config.num_layers)
"""


@pytest.fixture
def project(tiny_base, tmp_path, monkeypatch):
    """A project whose rounds r0 and r1 have a model."""
    root = tmp_path / "project"
    shutil.copytree(tiny_base, root / "models" / "base")
    for name in ("r0", "r1"):
        shutil.copytree(tiny_base, root / "models" / name)
        record = json.loads((tiny_base / "bagger.json").read_text())
        record |= {"kind": "round", "round": name, "recipe": {"num_steps": 7}, "objective": "bagger"}
        (root / "models" / name / "bagger.json").write_text(json.dumps(record))
        (root / "metrics").mkdir(exist_ok=True)
        (root / "metrics" / f"{name}.json").write_text(json.dumps({"drift": 4.5, "drift_ci95": 0.4, "num_clips": 32}))
    (root / "data" / "runs").mkdir(parents=True)
    train = {"params": {"train": {"objective": "bagger", "lr": 0.001}, "prefix_chunks": 4}, "git_commit": "a" * 40}
    (root / "data" / "runs" / "train_r1.json").write_text(json.dumps(train))
    (root / "reports").mkdir()
    (root / "reports" / "drift.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    monkeypatch.chdir(root)
    return root


def test_a_published_model_loads_with_plain_diffusers(hub, project, tmp_path):
    made = to_hub(Request("r1", NAME, dataset="lab/clips", license="apache-2.0"))
    repo = hub.repo("models", NAME)
    assert made.where.made
    assert repo.private
    assert repo.tags == {"r1": repo.head}
    files = repo.files()
    for path in (project / "models" / "r1").rglob("*"):
        if path.is_file():
            assert files[path.relative_to(project / "models" / "r1").as_posix()] == path.read_bytes()
    assert files["assets/drift.png"] == b"\x89PNG\r\n\x1a\n"
    card = files["README.md"].decode()
    assert "lab/clips" in card
    assert "4.5" in card
    assert fresh(hub, tmp_path, LOAD).split() == ["WanTransformer3DModel", "1"]
    (fact,) = publications(project / "data" / "store")
    assert (fact["kind"], fact["repo"], fact["tag"], fact["revision"]) == ("model", NAME, "r1", repo.head)
    again = to_hub(Request("r1", NAME))
    assert not again.where.made
    assert len(repo.commits) == 2


def test_rounds_one_after_the_other_are_tags_of_one_repository(hub, project):
    to_hub(Request("r0", NAME))
    to_hub(Request("r1", NAME))
    repo = hub.repo("models", NAME)
    assert json.loads(repo.files("r0")["bagger.json"])["round"] == "r0"
    assert json.loads(repo.files("r1")["bagger.json"])["round"] == "r1"


def test_what_cannot_be_published(hub, project):
    with pytest.raises(ModelError, match=r"models/r2: no model; `dvc repro train@r2` makes it"):
        to_hub(Request("r2", NAME))
    to_hub(Request("r1", NAME))
    repo = hub.repo("models", NAME)
    hub.commit_as("ada", repo, {"bagger.json": None})
    with pytest.raises(HubError, match=r"holds other files .* and no bagger\.json"):
        to_hub(Request("r0", NAME))
    assert not Path("data/store").exists()

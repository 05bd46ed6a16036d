"""Stage `hub`: a data set on the Hub as a folder of videos, by the real `datasets` from a server like the Hub."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset, Features, Value, Video

from store.folder import read_folder
from store.video import decode_video, encode_video
from tests.flows.test_publish import frames_of

ROOT = Path(__file__).parents[2]
CARD = b"---\nconfigs:\n- config_name: clips\n  data_files: clips.parquet\n---\n"


@pytest.fixture
def source(hub, tmp_path):
    """lab/videos with three clips."""
    rows = {
        "clip": [{"bytes": encode_video(frames_of(n), 8, 12), "path": f"../../{n}.mp4"} for n in range(3)],
        "caption": ["a red disc", "a 'blue' disc", "a disc\nin two lines"],
        "terms": ["CC0-1.0", "CC-BY-4.0", None],
    }
    features = Features({"clip": Video(), "caption": Value("string"), "terms": Value("string")})
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "clips.parquet")
    from huggingface_hub import HfApi

    HfApi(endpoint=hub.url).create_repo("lab/videos", repo_type="dataset", private=True)
    files = {"README.md": CARD, "clips.parquet": (tmp_path / "clips.parquet").read_bytes()}
    hub.commit_as("ada", hub.repo("datasets", "lab/videos"), files)
    return rows


@pytest.fixture
def run(hub, tmp_path):
    """Runs the stage in a project of its own."""
    project = tmp_path / "project"
    project.mkdir()

    def run(command=("-m", "flows.hub"), **knobs) -> subprocess.CompletedProcess:
        told = {"repo": "lab/videos", "revision": "main", "config": None, "split": "train", "video": "clip",
                "caption": "caption", "license": "terms", "max_clips": None} | knobs  # fmt: skip
        text = (ROOT / "tests" / "smoke.yaml").read_text().splitlines()
        text = [f"hub: {json.dumps(told)}" if line.startswith("hub:") else line for line in text]
        (project / "params.yaml").write_text("\n".join(text))
        env = {one: value for one, value in os.environ.items() if not one.startswith("HF_")} | hub.environment
        env |= {"HF_TOKEN": "hf_ada", "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
        return subprocess.run([sys.executable, *command], cwd=project, env=env, capture_output=True, text=True)

    run.project = project
    return run


def test_a_data_set_becomes_a_folder_that_the_seed_stage_reads(hub, source, run):
    done = run()
    assert done.returncode == 0, done.stderr
    folder = read_folder(run.project / "data" / "hub", heldout=0)
    assert folder.rejected == []
    assert [one.caption for one in folder.clips] == source["caption"]
    assert [one.license for one in folder.clips] == source["terms"]
    for clip, video in zip(folder.clips, source["clip"], strict=True):
        assert clip.path.read_bytes() == video["bytes"]
        assert len(decode_video(clip.path)) == 3
    commit = hub.repo("datasets", "lab/videos").head
    assert folder.clips[0].extra["source"] == f"lab/videos@{commit}"
    record = json.loads((run.project / "data" / "runs" / "hub.json").read_text())
    assert (record["outputs"]["commit"], record["outputs"]["clips"]) == (commit, 3)
    assert "hf_ada" not in json.dumps(record)


def test_only_so_many(source, run):
    assert run(max_clips=2).returncode == 0
    assert len(read_folder(run.project / "data" / "hub", heldout=0).clips) == 2


def test_without_a_data_set_the_folder_says_so(hub, run):
    assert run(repo=None).returncode == 0
    assert [path.name for path in (run.project / "data" / "hub").iterdir()] == ["README.txt"]


WRONG = {
    "no dataset lab/none": {"repo": "lab/none"},
    "ORG/NAME": {"repo": "../etc"},
    "no revision 'v9'": {"revision": "v9"},
    "hub.config: found 'other'; lab/videos at main has clips": {"config": "other"},
    "hub.split: found 'test'; lab/videos at main has train": {"split": "test"},
    "hub.caption: found 'text'; lab/videos at main has clip, caption, terms": {"caption": "text"},
    "hub.video: column 'caption' of lab/videos at main is a Value, not a Video": {"video": "caption"},
}
ASK = """
import json, sys
from flows.hub import open_rows
from flows.params import load_params

params = load_params()
for knobs in json.loads(sys.argv[1]):
    try:
        open_rows(params.model_copy(update={"hub": params.hub.model_copy(update=knobs)}))
    except ValueError as error:
        print(json.dumps(str(error)))
"""


def test_what_cannot_be_read_is_named(source, run):
    done = run(split="test")
    assert done.returncode == 1
    assert "error: params.yaml: hub.split: found 'test'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (run.project / "data" / "hub").exists()
    asked = run(command=["-c", ASK, json.dumps(list(WRONG.values()))])
    told = list(map(json.loads, asked.stdout.splitlines()))
    assert len(told) == len(WRONG), asked.stderr
    for said, line in zip(WRONG, told, strict=True):
        assert said in line

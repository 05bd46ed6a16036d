"""The stage as a whole, on a tiny model: what it leaves, that it repeats itself, that it goes on where it stopped."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from flows import evaluate, paths
from flows.distance import Watcher
from flows.evaluated import Evaluated, read_tables
from flows.params import load_params
from flows.scorer import project_scorer
from flows.server import HOME, prefect_server
from model import drift, features
from store.digest import digest
from store.video import decode_video
from tests.flows.heldout import CLIPS, FRAMES, project


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_base, prefect_home):
    """Round r0 evaluated, which was stopped before the end, and r1, which is the same model, without interruption."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("evaluate"))
        params = project(tiny_base)
        project_scorer(params, "evaluation")  # loads all code: work in progress is told apart by the code loaded
        Watcher(params)
        shutil.copytree(prefect_home, HOME)
        with prefect_server():
            Path("evaluation").write_text("in the way")
            with pytest.raises(OSError, match="evaluation"):
                evaluate.main(params, "r0")
            (work,) = Path(".work").glob("evaluate-r0-*/clips")
            kept = work / "seed-4.json"
            kept.write_text(kept.read_text().replace('"gates": ""', '"gates": "black"'))
            Path("evaluation").unlink()
            evaluate.main(params, "r0")
            evaluate.main(params, "r1")
        yield Path.cwd()


@pytest.fixture
def here(made, monkeypatch) -> Path:
    monkeypatch.chdir(made)
    return made


def read(round: str) -> Evaluated:
    return read_tables(paths.evaluation(round))


def test_it_leaves_tables_videos_and_what_the_extractor_saw(here):
    found = sorted(path.name for path in paths.evaluation("r1").iterdir())
    assert found == ["curves.csv", "looks.json", "looks.npy", "scores.csv", "segments.csv", "videos"]
    one = read("r1")
    assert [row["clip_id"] for row in one.rows] == [f"seed-{n}" for n in range(CLIPS)]
    looks = np.load(paths.evaluation("r1") / "looks.npy")
    assert looks.shape == (CLIPS, 2, 192)  # two seconds; mean and step of 96 features
    told = json.loads((paths.evaluation("r1") / "looks.json").read_text())
    assert told["clip_ids"] == [row["clip_id"] for row in one.rows]
    assert told["extractor"]["name"] == "random-conv"
    assert [path for path in Path(".work").iterdir() if path.is_dir()] == []


def test_scores_are_those_of_the_kept_video(here):
    video = decode_video(paths.evaluation("r1") / "videos" / "seed-2.mp4")
    assert len(video) == FRAMES
    wanted, found = features.curves(video), read("r1").curves["seed-2"]
    for name in ("saturation", "detail", "flow"):
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5, atol=1e-7)
    row = next(row for row in read("r1").rows if row["clip_id"] == "seed-2")
    assert row["signed15_saturation"] == pytest.approx(drift.signed15(wanted["saturation"]))
    assert row["bagger20_flow"] == pytest.approx(drift.bagger20(wanted["flow"]))


def test_a_network_that_makes_noise_is_told_from_the_truth(here):
    metrics = json.loads(paths.metrics("r1").read_text())
    assert metrics["num_clips"] == CLIPS
    assert metrics["drift"] > 2
    assert metrics["oracle_error"] > 0.5
    assert metrics["latent_drift"] > 0
    assert 0 < metrics["temporal_flickering"] < 1
    assert -1 < metrics["subject_consistency"] <= 1
    assert sum(metrics["drift_part"].values()) == pytest.approx(1, abs=1e-3)
    assert not any(name.startswith(("bagger20", "rolling5s")) for name in metrics)


def test_segments_have_metrics_of_their_own(here):
    segments = read("r1").segments
    assert len(segments) == 3 * CLIPS
    assert {(row["start"], row["end"]) for row in segments} == {(0, 0.625), (0.625, 1.375), (1.375, 2.0)}
    flickering = {row["temporal_flickering"] for row in segments}
    assert len(flickering) > 3
    assert all(0 < value <= 1 for value in flickering)


def test_a_stopped_run_goes_on_with_what_it_had(here):
    """The gate that was written into the work in progress is there; all else is as in the run without interruption."""
    stopped, whole = read("r0").rows, read("r1").rows
    assert [row["gates"] for row in stopped] == ["black" if n == 4 else "" for n in range(CLIPS)]
    assert [row | {"gates": ""} for row in stopped] == whole
    assert json.loads(paths.metrics("r0").read_text())["gated"] == 1
    for name in ("curves.csv", "segments.csv", "looks.npy", "looks.json"):
        first, second = ((paths.evaluation(k) / name).read_bytes() for k in ("r0", "r1"))
        assert first == second, name


def test_the_networks_that_looked_decide_whose_work_is_gone_on_with(here):
    """What is made of files may be other files tomorrow under the same name; random-conv of the distance is not."""
    record = json.loads(Path("data/runs/evaluate_r1.json").read_text())
    identities = project_scorer(load_params(), "evaluation").identities
    assert set(identities) == {"subject"}
    assert record["inputs"]["extractors"] == digest(identities)
    assert "distance" not in record["inputs"]

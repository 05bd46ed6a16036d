"""The stage on a hand-made evaluation: round r0 went grey, round r1 made the truth itself."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from flows import paths, report
from flows.distance import Watcher, looks_of
from flows.evaluated import EvaluatedError, curves_of, row_of, segment_seconds, segments_of, write_tables
from flows.params import Params
from flows.scorer import program_of, project_scorer
from flows.stage import write_json
from store.video import decode_video, encode_video
from tests.flows.heldout import CLIPS, FRAMES, PREFIX, project, row, truth

FPS, CHUNK = 8.0, 2


def grey(frames: np.ndarray) -> np.ndarray:
    """Colour goes frame by frame, from the end of the prefix on."""
    share = np.clip(np.arange(FRAMES) - PREFIX + 1, 0, 10)[:, None, None, None] / 10
    return (frames + share * (frames.mean(-1, keepdims=True) - frames)).round().astype(np.uint8)


def write_evaluation(round: str, params: Params, change) -> None:
    """As flows.evaluate leaves it."""
    folder = paths.evaluation(round)
    (folder / "videos").mkdir(parents=True)
    scorer, watcher = project_scorer(params, "evaluation"), Watcher(params)
    results, looks = [], {}
    for number in range(CLIPS):
        clip = row(number)
        video = encode_video(change(truth(number)), FPS, 12)
        (folder / "videos" / f"{clip['clip_id']}.mp4").write_bytes(video)
        frames, seconds = decode_video(video), segment_seconds(FRAMES, FPS)
        scored = scorer.score(
            frames, PREFIX, chunk_frames=CHUNK, program=program_of(clip["extra"]), fps=FPS, prompt=clip["prompt"]
        )
        measured = scorer.segments(frames, FPS, clip["prompt"], seconds)
        parts = segments_of(clip["clip_id"], scored, FPS, seconds, measured)
        results.append({"row": row_of(clip, scored, FPS, CHUNK), "curves": curves_of(scored), "segments": parts})
        looks[clip["clip_id"]] = watcher.look(frames)
    write_tables(folder, results, FPS)
    seen = looks_of(looks)
    np.save(folder / "looks.npy", seen.features)
    write_json(folder / "looks.json", {"clip_ids": seen.clip_ids, "extractor": watcher.identity})


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_base):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("report"))
        params = project(tiny_base)
        write_evaluation("r0", params, grey)
        write_evaluation("r1", params, lambda frames: frames)
        report.main(params)
        yield Path.cwd()


@pytest.fixture
def here(made, monkeypatch) -> Path:
    monkeypatch.chdir(made)
    return made


def read(name: str) -> list[dict[str, str]]:
    with (paths.REPORTS / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_all_is_there(here):
    assert sorted(path.name for path in paths.REPORTS.iterdir()) == sorted(
        ["distance.csv", "distance.png", "drift.png", "drift_by_round.csv", "grid.mp4", "losses.png", "parts.png",
         "quality_over_time.csv", "quality_over_time.png", "summary.md"]
        + [f"{name}_table.{end}" for name in ("bagger", "deltas", "parts", "resampling") for end in ("csv", "md")]
    )  # fmt: skip


def test_real_clips_are_scored_as_rollouts_are(here):
    """Round r1 is the truth, so that every number of it is that of the real clips, but what latents say."""
    real, _, same = read("drift_by_round")
    unknown = {name for name in real if real[name] != same[name]}
    assert unknown == {"round", "latent_drift"}
    assert same["latent_drift"] == ""
    assert (paths.REPORTS / "summary.md").read_text(encoding="utf-8").count("| r1 |") == 3


def test_going_grey_is_named_and_is_no_improvement(here):
    real, faded, _ = read("drift_by_round")
    assert float(faded["drift"]) > float(real["drift"]) + 3
    assert float(faded["drift_saturation"]) < -5
    assert float(faded["oracle_error"]) > float(real["oracle_error"]) + 0.1
    shares = {(line["round"], line["part"]): float(line["foremost"]) for line in read("parts_table")}
    assert shares["r0", "under-saturating"] > 0.7
    assert shares["real", "none"] == shares["r1", "none"] > 0.6


def test_paper_tables_hold_the_drift_that_was_made(here):
    bagger = {line["round"]: line for line in read("bagger_table")}
    assert float(bagger["r0"]["delta_saturation"]) > 0.03  # falls
    assert float(bagger["r0"]["signed15_saturation"]) < -0.1
    assert abs(float(bagger["r1"]["delta_saturation"])) < 0.03
    parts = {(line["round"], line["segment"]): line for line in read("resampling_table")}
    saturation = [float(parts["r0", str(segment)]["saturation"]) for segment in range(3)]
    assert saturation[0] > 2 * saturation[2]
    assert parts["r0", "2"]["temporal_quality"] == ""  # not all its parts were measured
    assert 0 < float(parts["r0", "2"]["subject_consistency"]) <= 1
    deltas = {(line["definition"], line["round"], line["feature"]): line for line in read("deltas_table")}
    assert float(deltas["framepack15", "r0", "saturation"]["mean"]) > 0.1
    assert ("rolling5s", "r0", "saturation") not in deltas  # two seconds


def test_grey_clips_are_far_from_real_ones_and_true_ones_as_far_as_these(here):
    found = {(line["distance"], line["round"], line["second"]): line for line in read("distance")}
    for kind in ("frechet", "kid"):
        for second in ("0.5", "1.5"):
            null = found[kind, "real", second]
            assert float(found[kind, "r0", second]["mean"]) > float(null["high"])
            assert found[kind, "r1", second]["mean"] == null["mean"]


def test_curves_over_time(here):
    lines = read("quality_over_time")
    assert [line["round"] for line in lines] == ["real"] * FRAMES + ["r0"] * FRAMES + ["r1"] * FRAMES
    saturation = [float(line["saturation"]) for line in lines[FRAMES : 2 * FRAMES]]
    assert saturation[0] > 5 * saturation[-1]
    assert lines[0]["subject_consistency"] == ""  # no frame before it


def test_an_evaluation_seen_by_another_network_is_refused(here):
    path = paths.evaluation("r1") / "looks.json"
    told = json.loads(path.read_text())
    try:
        write_json(path, told | {"extractor": told["extractor"] | {"weights": {"kernels": "0"}}})
        from flows.params import load_params

        with pytest.raises(EvaluatedError, match=r"evaluation.r1.*run `dvc repro`"):
            report.main(load_params())
    finally:
        write_json(path, told)

"""What an evaluation writes down: a row a clip, a line a frame, a row a segment, means for `dvc metrics`."""

import csv
import json
import math

import numpy as np
import pytest
from scipy import stats

from flows.evaluated import (
    CURVES,
    DEFINITIONS,
    DELTAS,
    Evaluated,
    EvaluatedError,
    curves_of,
    deltas,
    evaluated,
    half_width,
    metric_names,
    part_shares,
    read_tables,
    row_of,
    segment_seconds,
    segments_of,
    summarise,
    write_tables,
)
from flows.scorer import Scored
from model import drift, vbench
from model.features import FEATURES
from model.metrics import Measured
from model.oracle import MEASURES

FPS, PREFIX, CHUNK = 8.0, 2, 2


def clip(number=1):
    return {"clip_id": f"seed-{number}", "prompt": 'a dog, "Rex", runs'}


def scored(value=1.0, gates="", part="none", parts="", oracle=True, frames=8, metric=False) -> Scored:
    """Every feature rises by one a frame; of the oracle one measure is known throughout, one late, the others never."""
    line = np.arange(frames, dtype=np.float32)
    unknown = np.full(frames, np.nan, np.float32)
    exact = dict.fromkeys(MEASURES, unknown) | {"error": line, "position_error": np.where(line < frames - 1, np.nan, 5)}
    aesthetic = Measured(0.5, np.linspace(1, 0, frames, dtype=np.float32))
    consistency = Measured(0.9, np.concatenate([[np.nan], line[1:]]).astype(np.float32))
    return Scored(
        drift.Drift(dict.fromkeys(drift.PARTS, -value), value, 0.0, part, parts, gates),
        dict.fromkeys((*FEATURES, "naturalness"), line),
        PREFIX,
        seam=2.0,
        latent_curve=np.array([0.0, 1.0, 2.0, 3.0]),
        oracle_curves=exact if oracle else {},
        measures={"aesthetic_quality": aesthetic, "subject_consistency": consistency} if metric else {},
    )


def result(one: Scored, number=1) -> dict:
    return {
        "row": row_of(clip(number), one, FPS, CHUNK),
        "curves": curves_of(one),
        "segments": segments_of(clip(number)["clip_id"], one, FPS, segment_seconds(8, FPS)),
    }


def test_a_row_has_scores_deltas_and_the_late_oracle():
    row = row_of(clip(), scored(2.0), FPS, CHUNK)
    assert (row["clip_id"], row["prompt"], row["drift"], row["gates"]) == (*clip().values(), 2.0, "")
    assert row["drift_motion"] == -2.0
    assert (row["seam"], row["latent_drift"], row["naturalness_drift"]) == (2.0, 3.0, 6.0)
    assert row["oracle_error"] == 6.5  # frames 6 and 7: the last third of the six generated ones
    assert row["oracle_position_error"] == 5.0  # of the one that knows it
    assert row["oracle_color_error"] is None
    assert {f"{kind}_{name}" for kind in DEFINITIONS for name in DELTAS} <= set(row)


def test_every_definition_of_a_delta_by_hand():
    line = np.arange(20, dtype=float)  # 20 frames, 4 a second
    found = deltas(line, 4, 4, 4.0)
    assert found["bagger20"] == 1.5 - 9.5
    assert found["signed15"] == 18 - 1  # three frames each
    assert found["framepack15"] == 17
    assert found["rolling5s"] == 0  # five seconds are the whole clip
    assert found["slope"] == pytest.approx(4)  # frames of a chunk
    assert math.isnan(deltas(line, 4, 4, 8.0)["rolling5s"])
    assert math.isnan(deltas(line, 3, 4, 8.0)["slope"])  # 17 frames are no chunks of 4
    assert all(map(math.isnan, deltas(None, 4, 4, 8.0).values()))


def test_a_curve_that_knows_nothing_of_frame_0_starts_at_frame_1():
    row = row_of(clip(), scored(metric=True), FPS, CHUNK)
    assert row["bagger20_subject_consistency"] == 1.5 - 4  # of frames 1 to 7
    assert row["signed15_aesthetic_quality"] == pytest.approx(-1)
    assert (row["subject_consistency"], row["aesthetic_quality"]) == (0.9, 0.5)
    assert metric_names([row]) == ["aesthetic_quality", "subject_consistency"]


def test_what_could_not_be_scored_has_a_row_that_says_so():
    row = row_of(clip(), Scored(drift.unscored(["undecodable"])), FPS, CHUNK)
    assert (row["gates"], row["drift_part"], row["drift"], row["oracle_error"]) == ("undecodable", None, None, None)
    assert {row[f"{kind}_{name}"] for kind in DEFINITIONS for name in DELTAS} == {None}
    assert segments_of("seed-1", Scored(drift.unscored(["undecodable"])), FPS, 5.0) == []
    json.dumps(row, allow_nan=False)


def test_a_row_outside_the_toy_world_says_none():
    row = row_of(clip(), scored(oracle=False), FPS, CHUNK)
    assert {row[f"oracle_{name}"] for name in MEASURES} == {None}
    json.dumps(row, allow_nan=False)


def test_curves_are_json_without_nan():
    curves = curves_of(scored(metric=True))
    assert list(curves) == [*CURVES, "aesthetic_quality", "subject_consistency"]
    assert curves["oracle_color_error"] == [None] * 8
    assert curves["oracle_position_error"] == [None] * 7 + [5.0]
    assert curves["subject_consistency"][:2] == [None, 1.0]
    json.dumps(curves, allow_nan=False)


@pytest.mark.parametrize(
    ("frames", "fps", "seconds"), [(160, 16, 5), (240, 16, 5), (56, 8, 7 / 3), (159, 16, 159 / 48)]
)
def test_segments_are_of_5_seconds_or_a_third(frames, fps, seconds):
    assert segment_seconds(frames, fps) == pytest.approx(seconds)


@pytest.mark.parametrize("fps", [5.0, 8.0, 10.0, 20.0, 0.5])
def test_the_shortest_clips_have_segments_of_a_frame(fps):
    for frames in (1, 2, 3, 4):
        bounds = vbench.segment_bounds(frames, fps, segment_seconds(frames, fps))
        assert len(bounds) == min(frames, 3)
        assert (bounds[0][0], bounds[-1][1]) == (0, frames)


def test_segments_by_hand():
    rows = segments_of("seed-1", scored(frames=12), 4.0, 1.0)
    assert [(row["start"], row["end"], row["saturation"]) for row in rows] == [(0, 1, 1.5), (1, 2, 5.5), (2, 3, 9.5)]
    assert [row["oracle_position_error"] for row in rows] == [None, None, 5.0]
    measured = [{"clip_score": Measured(value, np.zeros(4))} for value in (0.3, 0.2, 0.1)]
    rows = segments_of("seed-1", scored(frames=12), 4.0, 1.0, measured)
    assert [row["clip_score"] for row in rows] == [0.3, 0.2, 0.1]
    rest = segments_of("seed-1", scored(frames=11), 4.0, 1.0)[-1]
    assert (rest["start"], rest["end"], rest["flow"]) == (2, 2.75, 9.0)  # a last, shorter one


def test_an_interval_is_students():
    values = [1.0, 2.0, 4.0]
    low, high = stats.ttest_1samp(values, 0).confidence_interval()
    assert half_width(values) == pytest.approx((high - low) / 2)
    assert half_width([3.0]) == 0


def test_summary_is_means_an_interval_and_what_clips_drift_in():
    rows = [
        row_of(clip(n), scored(value, gates, part, parts), FPS, CHUNK)
        for n, (value, gates, part, parts) in enumerate(
            [
                (1.0, "", "freezing", "freezing,darkening"),
                (2.0, "black", "darkening", "darkening"),
                (6.0, "", "none", ""),
            ]
        )
    ]
    rows.append(row_of(clip(4), Scored(drift.unscored(["nan"])), FPS, CHUNK))
    found = summarise(rows)
    assert (found["num_clips"], found["gated"]) == (4, 2)
    assert (found["drift"], found["drift_saturation"], found["oracle_error"]) == (3.0, -3.0, 6.5)
    assert found["drift_ci95"] == pytest.approx(half_width([1, 2, 6]), abs=1e-4)
    assert found["drift_part"] == {"darkening": 0.3333, "freezing": 0.3333, "none": 0.3333}  # of those with a score
    assert "oracle_color_error" not in found
    assert not any(name.startswith(DEFINITIONS) for name in found)
    shares = part_shares(rows)
    assert shares["darkening"] == (1 / 3, 2 / 3)
    assert shares["over-saturating"] == (0, 0)
    assert sum(most for most, _ in shares.values()) == pytest.approx(1)
    json.dumps(found, allow_nan=False)


def test_tables_read_back(tmp_path):
    results = [
        result(scored(1.0, metric=True), 1),
        result(scored(2.0, oracle=False, frames=5), 2),
        result(Scored(drift.unscored(["undecodable"])), 3),
    ]
    write_tables(tmp_path, results, FPS)
    with (tmp_path / "curves.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 8 + 5
    assert list(lines[0])[: 3 + len(CURVES)] == ["clip_id", "frame", "second", *CURVES]
    assert (lines[7]["frame"], lines[7]["second"], lines[7]["saturation"]) == ("7", "0.875", "7")
    assert (lines[7]["oracle_position_error"], lines[7]["oracle_color_error"]) == ("5", "")
    read, direct = read_tables(tmp_path), evaluated(results)
    assert [row["clip_id"] for row in read.rows] == ["seed-1", "seed-2", "seed-3"]
    for before, after in zip(direct.rows, read.rows, strict=True):
        assert {name: after.get(name) for name in before} == before
    assert [row["segment"] for row in read.segments] == [0, 1, 2] + [0, 1]  # five frames: two parts of a third of 8
    assert read.by_clip("oracle_error") == {"seed-1": 6.5}
    assert read.means("flow").tolist() == direct.means("flow").tolist() == list(range(8))
    assert np.isnan(read.means("oracle_position_error")[:7]).all()
    assert read.means("oracle_color_error").size == 0 or np.isnan(read.means("oracle_color_error")).all()


def test_a_folder_of_an_older_version_says_what_to_do(tmp_path):
    with pytest.raises(EvaluatedError, match="run `dvc repro`"):
        read_tables(tmp_path)
    for name in ("scores", "segments", "curves"):
        (tmp_path / f"{name}.csv").write_text("clip_id,drift,gate\nseed-1,1.0,\n")
    with pytest.raises(EvaluatedError, match=r"no drift_part.*run `dvc repro`"):
        read_tables(tmp_path)


def test_means_are_over_those_that_are_that_long():
    one = Evaluated([], {"a": {"flow": np.array([1.0, 3.0, np.nan])}, "b": {"flow": np.array([3.0])}}, [])
    assert one.means("flow")[:2].tolist() == [2.0, 3.0]
    assert np.isnan(one.means("flow")[2])
    assert one.means("luma").size == 0

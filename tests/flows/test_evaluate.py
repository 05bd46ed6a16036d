"""What an evaluation writes down: a row a clip, a line a frame, means for `dvc metrics`."""

import csv
import json
import math

import numpy as np
import pytest

from flows.evaluate import CURVES, curves_of, row_of, summarise, write_tables
from model.drift import Drift
from model.features import FEATURES
from model.oracle import MEASURES

CLIP = {"clip_id": "seed-1", "prompt": 'a dog, "Rex", runs'}


def found(value=1.0, gate="", oracle=True, frames=6):
    numbers = dict.fromkeys(FEATURES, value)
    curve = np.arange(frames, dtype=np.float32)
    unknown = np.full(frames, np.nan, np.float32)
    exact = {"object_present": curve, "color_error": unknown, "position_error": np.where(curve < 5, np.nan, curve)}
    exact["background_error"] = np.where(curve < 5, curve, np.nan)
    return {
        "drift": Drift(numbers, dict.fromkeys(FEATURES, -value), value, gate),
        "curves": dict.fromkeys(FEATURES, curve / 10),
        "oracle_curves": exact if oracle else {},
    }


def test_a_row_has_the_late_oracle_and_the_signed_drift():
    row = row_of(CLIP, found(2.0))
    assert (row["clip_id"], row["prompt"], row["drift"], row["gate"]) == (*CLIP.values(), 2.0, "")
    assert row["drift_motion"] == -2.0
    assert row["delta_motion"] == 2.0
    assert row["oracle_object_present"] == 4.5  # of frames 4 and 5: the last third of 6
    assert row["oracle_position_error"] == 5.0  # those that know it
    assert row["oracle_background_error"] == 4.0
    assert row["oracle_color_error"] is None


def test_a_row_outside_the_toy_world_says_none():
    row = row_of(CLIP, found(oracle=False))
    assert [row[f"oracle_{name}"] for name in MEASURES] == [None] * 4
    json.dumps(row, allow_nan=False)


def test_a_single_frame_has_a_tail():
    assert row_of(CLIP, found(frames=1))["oracle_object_present"] == 0.0


def test_curves_are_json_without_nan():
    curves = curves_of(found())
    assert list(curves) == list(CURVES)
    assert curves["oracle_color_error"] == [None] * 6
    assert curves["oracle_position_error"] == [None] * 5 + [5.0]
    json.dumps(curves, allow_nan=False)
    assert list(curves_of(found(oracle=False))) == list(FEATURES)


def test_summary_is_means_with_an_interval():
    rows = [row_of(CLIP, found(value, gate)) for value, gate in ((1.0, ""), (2.0, "black"), (3.0, ""))]
    summary = summarise(rows)
    assert (summary["num_clips"], summary["gated"]) == (3, 1)
    assert summary["drift"] == 2.0
    assert summary["drift_ci95"] == pytest.approx(1.96 * 1.0 / math.sqrt(3), abs=1e-4)
    assert summary["drift_saturation"] == -2.0
    assert summary["oracle_object_present"] == 4.5
    assert "oracle_color_error" not in summary


def test_numbers_nobody_knows_are_left_out_of_means():
    rows = [row_of(CLIP, found(1.0)), row_of(CLIP, found(math.nan, "nan")), row_of(CLIP, found(2.0, oracle=False))]
    summary = summarise(rows)
    assert summary["num_clips"] == 3
    assert summary["gated"] == 1
    assert summary["drift"] == 1.5
    assert summary["oracle_object_present"] == 4.5
    json.dumps(summary, allow_nan=False)


def test_one_clip_has_no_interval():
    assert summarise([row_of(CLIP, found(1.0))])["drift_ci95"] == 0.0


def test_tables_read_back(tmp_path):
    results = [
        {"row": row_of(CLIP, one), "curves": curves_of(one)} for one in (found(1.0), found(2.0, oracle=False, frames=3))
    ]
    write_tables(tmp_path, results, fps=8)
    with (tmp_path / "scores.csv").open(newline="", encoding="utf-8") as file:
        scores = list(csv.DictReader(file))
    assert [(row["prompt"], row["drift"]) for row in scores] == [(CLIP["prompt"], "1.0"), (CLIP["prompt"], "2.0")]
    assert scores[1]["oracle_object_present"] == ""
    with (tmp_path / "curves.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 6 + 3
    assert list(lines[0]) == ["clip_id", "frame", "second", *CURVES]
    last = lines[5]
    assert (last["frame"], last["second"], last["saturation"]) == ("5", "0.625", "0.5")
    assert (last["oracle_position_error"], last["oracle_color_error"]) == ("5", "")
    assert lines[8]["oracle_object_present"] == ""

import json
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from flows.scorer import Scored, Scorer, program_of
from model import drift, features, injection, naturalness, oracle, toyworld
from model.metrics import load_extractors
from model.rng import numpy_generator
from store.schema import FEATURES, SCORES
from store.table import WorkingTable

PREFIX, FRAMES = 2, 14


def clip(index: int, **changed) -> tuple[np.ndarray, toyworld.Program]:
    program = toyworld.sample_program(numpy_generator("test-scorer", index))
    return toyworld.render(program, FRAMES, 32), program


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    clips = [clip(n)[0] for n in range(12)]
    natural = drift.fit([features.curves(one) for one in clips], PREFIX)
    looks = np.concatenate([naturalness.features(features.luma(one)) for one in clips])
    return Scorer(natural, naturalness.fit(looks, 32, 32))


def score(scorer: Scorer, frames: np.ndarray, **settings) -> Scored:
    rng = numpy_generator("latents")
    latents = rng.standard_normal((4, 14, 4, 4)).astype(np.float32)
    given = {"num_frames": FRAMES, "chunk_frames": 2, "latents": latents, "prefix_latents": 2, "chunk_latents": 2}
    return scorer.score(frames, PREFIX, **{**given, **settings})


def kept(folder, scored: Scored) -> dict:
    """The row as the table gives it back."""
    table = WorkingTable(folder, "scores_r1", SCORES, "rollout_id")
    names = {"rollout_id": "rollout-1", "round": "r1", "was_derived_from": [], "was_generated_by": "run-1"}
    table.upsert([names | scored.columns()])
    return table.read().to_pylist()[0]


def test_everything_measured_has_a_column_and_every_column_a_measurement(scorer, tmp_path):
    frames, program = clip(20)
    row = kept(tmp_path, score(scorer, frames, program=program))
    unknown = {name for name, value in row.items() if value is None}
    # direction and order are unknown of shapes that only stand or only move
    assert unknown <= {"measures", "oracle_direction_error", "oracle_order_error", "oracle_trajectory_error"}
    assert all(len(row[name]) == FRAMES for name in FEATURES)
    assert row["scorer"] == drift.SCORER
    assert row["gates"] == ""
    assert len(row["latent_curve"]) == 7
    exact = json.loads(row["oracle_curves"])
    assert list(exact) == sorted(oracle.MEASURES)
    assert row["oracle_error"] == pytest.approx(np.mean(exact["error"][PREFIX:]), abs=1e-6)


def test_what_cannot_be_decoded_has_a_row_that_says_so(tmp_path):
    row = kept(tmp_path, Scored(drift.unscored(["undecodable"])))
    assert (row["gates"], row["drift"], row["drift_part"]) == ("undecodable", None, None)
    assert all(row[name] is None for name in FEATURES)


def test_gates_are_flagged_and_numbers_kept(scorer):
    frames, _ = clip(21)
    black = frames.copy()
    black[PREFIX:] = 0
    assert score(scorer, black).drift.gates == "black,clipped"
    assert score(scorer, black).drift.drift > 3
    broken = np.full((4, 14, 4, 4), np.nan, np.float32)
    found = score(scorer, frames, latents=broken)
    assert (found.drift.gates, found.latent_curve) == ("nan", None)
    assert math.isfinite(found.drift.drift)
    assert score(scorer, frames, num_frames=15).drift.gates == "length"
    only = scorer.score(frames[:PREFIX], PREFIX)
    assert only.drift.gates == "length"
    assert math.isnan(only.drift.drift)
    assert only.summary()["naturalness_drift"] is None


def test_the_tail_of_naturalness_and_latents_by_hand(scorer):
    frames, _ = clip(22)
    found = score(scorer, frames)
    curve = naturalness.score(features.luma(frames), scorer.fitted)
    assert found.naturalness_drift == pytest.approx(curve[-4:].mean() - curve[:2].mean(), abs=1e-5)
    assert found.latent_drift == pytest.approx(found.latent_curve[-2:].mean())  # of six generated chunks
    noisy = injection.inject(frames, "noise", 1.0, PREFIX)
    assert score(scorer, noisy).naturalness_drift > found.naturalness_drift + 5


def test_without_latents_fit_and_program_what_they_give_is_unknown(scorer):
    frames, _ = clip(23)
    found = Scorer(scorer.natural).score(frames, PREFIX)
    row = found.columns()
    assert (row["seam"], row["latent_drift"], row["naturalness_drift"], row["oracle_error"]) == (None,) * 4
    assert "naturalness" not in row
    assert row["drift"] == pytest.approx(score(scorer, frames).drift.drift)


def test_pretrained_metrics_carry_their_extractors_and_may_be_measured_from_threads(scorer, tmp_path):
    names = ["subject_consistency", "temporal_flickering"]
    extractors = load_extractors(["subject"], {"subject": "random-conv"})
    other = Scorer(scorer.natural, None, names, extractors)
    clips = [clip(n)[0] for n in range(30, 34)]
    alone = [other.score(one, PREFIX, fps=8).columns()["measures"] for one in clips]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda one: other.score(one, PREFIX, fps=8).columns()["measures"], clips)) == alone
    told = json.loads(kept(tmp_path, other.score(clips[0], PREFIX, fps=8))["measures"])
    assert [one["name"] for one in told["measures"]] == names
    assert told["measures"][0]["curve"][0] is None  # a consistency has no value at frame 0
    assert told["extractors"]["subject"] == extractors["subject"].identity


def test_a_program_is_read_from_a_clips_extra_columns():
    program = clip(1)[1]
    assert program_of(json.dumps({"program": toyworld.to_json(program)})) == program
    assert program_of('{"program": "a dance"}') is None
    assert program_of("{}") is None

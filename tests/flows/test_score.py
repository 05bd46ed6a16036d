"""One clip's score: drift in generation order, with the oracle beside it where the world is known."""

import json

import numpy as np
import pytest

from flows.score import program_of, score_frames
from model import drift, features, oracle, toyworld

PREFIX, FRAMES = 3, 12


@pytest.fixture(scope="module")
def programs():
    rng = np.random.default_rng(0)
    return [toyworld.sample_program(rng) for _ in range(12)]


@pytest.fixture(scope="module")
def natural(programs):
    return drift.natural_variation([toyworld.render(p, FRAMES) for p in programs], PREFIX)


@pytest.fixture(scope="module")
def program():
    shape = toyworld.Shape("circle", "red", "moves right", 0.4, 0.5, 0.18, 0.02)
    return toyworld.Program((shape,), "striped", "slate", 3)


@pytest.fixture(scope="module")
def frames(program):
    return toyworld.render(program, FRAMES)


def test_all_is_measured_over_every_frame(frames, program, natural):
    found = score_frames(frames, PREFIX, natural, program)
    assert set(found["curves"]) == set(features.FEATURES)
    assert set(found["oracle_curves"]) == set(oracle.MEASURES)
    assert {len(curve) for curve in (*found["curves"].values(), *found["oracle_curves"].values())} == {FRAMES}
    assert found["drift"].gate == ""
    assert found["drift"].drift < 3
    assert found["oracle"]["oracle_object_present"] == 1
    assert found["oracle"]["oracle_position_error"] < 0.02


def test_fading_late_drifts_down_and_over_saturation_up(frames, program, natural):
    true = score_frames(frames, PREFIX, natural, program)["drift"]
    for factor, sign in ((0.4, -1), (1.8, 1)):
        late = frames.astype(float)
        grey = late[PREFIX:].mean(-1, keepdims=True)
        late[PREFIX:] = grey + factor * (late[PREFIX:] - grey)
        found = score_frames(np.clip(late, 0, 255).astype(np.uint8), PREFIX, natural, program)
        assert sign * found["drift"].parts["saturation"] > 3
        assert found["drift"].drift > true.drift + 1
        assert found["oracle"]["oracle_background_error"] > 0.005


def test_the_oracle_counts_generated_frames_alone(frames, program, natural):
    damaged = frames.copy()
    damaged[:PREFIX] = 0
    late = frames.copy()
    late[PREFIX:] = frames[PREFIX:][:, :, ::-1]
    true, early, mirrored = (score_frames(f, PREFIX, natural, program)["oracle"] for f in (frames, damaged, late))
    assert early == true
    assert mirrored["oracle_background_error"] > true["oracle_background_error"] + 0.01


def test_order_matters(frames, natural):
    grey = frames.copy()
    grey[6:] = grey[6:].mean(-1, keepdims=True).astype(np.uint8)
    forwards, backwards = (score_frames(f, PREFIX, natural, None)["drift"] for f in (grey, grey[::-1]))
    assert forwards.parts["saturation"] < 0 < backwards.parts["saturation"]


def test_black_frames_are_gated_with_numbers_all_the_same(frames, program, natural):
    black = frames.copy()
    black[PREFIX:] = 0
    found = score_frames(black, PREFIX, natural, program)
    assert found["drift"].gate == "black"
    assert found["drift"].drift > 3
    assert found["oracle"]["oracle_object_present"] == 0
    assert found["oracle"]["oracle_position_error"] is None


def test_outside_the_toy_world_there_is_no_oracle(frames, natural):
    found = score_frames(frames, PREFIX, natural, None)
    assert found["oracle_curves"] == {}
    assert found["oracle"] == {f"oracle_{name}": None for name in oracle.MEASURES}


def test_program_of_a_toy_clip(program):
    assert program_of(json.dumps({"program": toyworld.to_json(program), "license": "CC0"})) == program


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"program": None},
        {"program": 7},
        {"program": "Concert, second half"},
        {"program": "{}"},
        {"program": '{"shapes": []}'},
    ],
)
def test_a_program_of_another_kind_is_none(extra):
    assert program_of(json.dumps(extra)) is None


def test_a_program_with_words_of_another_world_is_none(program):
    assert program_of(json.dumps({"program": toyworld.to_json(program).replace('"red"', '"beige"')})) is None

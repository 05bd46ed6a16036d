"""What the scorer says of clips that are known to be wrong: in generation order, against their own prefix."""

import numpy as np
import pytest

from flows.scorer import Scorer
from model import drift, features, toyworld
from model.rng import numpy_generator

PREFIX, FRAMES = 3, 12


@pytest.fixture(scope="module")
def scorer():
    programs = [toyworld.sample_program(numpy_generator("test-score", n)) for n in range(12)]
    return Scorer(drift.fit([features.curves(toyworld.render(p, FRAMES)) for p in programs], PREFIX))


@pytest.fixture(scope="module")
def program():
    shape = toyworld.Shape("circle", "red", "moves right", 0.4, 0.5, 0.18, 0.02)
    return toyworld.Program((shape,), "striped", "slate", 3)


@pytest.fixture(scope="module")
def frames(program):
    return toyworld.render(program, FRAMES)


def test_a_true_clip_does_not_drift(frames, program, scorer):
    found = scorer.score(frames, PREFIX, program=program)
    assert found.drift.drift < 3
    assert found.drift.gates == ""
    assert found.oracle(PREFIX)["oracle_object_present"] == 1
    assert found.oracle(PREFIX)["oracle_error"] < 0.1


@pytest.mark.parametrize(("factor", "sign"), [(0.4, -1), (1.8, 1)])
def test_fading_late_drifts_down_and_over_saturation_up(frames, program, scorer, factor, sign):
    true = scorer.score(frames, PREFIX, program=program)
    late = frames.astype(float)
    grey = features.luma(frames)[PREFIX:, ..., None] * 255
    late[PREFIX:] = grey + factor * (late[PREFIX:] - grey)
    found = scorer.score(np.clip(late, 0, 255).astype(np.uint8), PREFIX, program=program)
    assert sign * found.drift.parts["saturation"] > 3
    assert found.drift.drift > true.drift.drift + 1
    assert found.oracle(PREFIX)["oracle_error"] > true.oracle(PREFIX)["oracle_error"] + 0.02


def test_the_oracle_counts_generated_frames_alone(frames, program, scorer):
    damaged = frames.copy()
    damaged[: PREFIX - 2] = 0  # trajectory, direction and order look two frames back
    mirrored = frames.copy()
    mirrored[PREFIX:] = frames[PREFIX:][:, :, ::-1]
    true, early, late = (scorer.score(f, PREFIX, program=program).oracle(PREFIX) for f in (frames, damaged, mirrored))
    assert early == true
    assert late["oracle_background_error"] > true["oracle_background_error"] + 0.01


def test_order_matters(frames, scorer):
    grey = features.luma(frames)[..., None] * 255
    faded = frames.copy()
    faded[6:] = (grey + 0.4 * (frames - grey))[6:].astype(np.uint8)
    forwards, backwards = (scorer.score(f, PREFIX).drift for f in (faded, faded[::-1]))
    assert forwards.parts["saturation"] < 0 < backwards.parts["saturation"]

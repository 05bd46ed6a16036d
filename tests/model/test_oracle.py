"""The oracle: content with the truth, and each kind of damage shows in the measure meant for it."""

from dataclasses import replace

import numpy as np
import pytest

from model.oracle import MEASURES, measure
from model.toyworld import COLORS, Program, Shape, render, render_layers, reverse, sample_program
from store.video import decode_video, encode_video

FRAMES = 8


def program_of(event="moves right", color="red", **changes) -> Program:
    shape = Shape("circle", color, event, 0.4, 0.5, 0.18, 0.02, 0.7)
    return replace(Program((shape,), "striped", "slate", 3), **changes)


def means(frames, program) -> dict[str, float]:
    """Mean of every measure over the frames that know it; those that none knows are left out."""
    found = measure(frames, program)
    return {name: float(np.nanmean(curve)) for name, curve in found.items() if np.isfinite(curve).any()}


@pytest.fixture(scope="module")
def program():
    return program_of()


@pytest.fixture(scope="module")
def frames(program):
    return render(program, FRAMES)


def test_truth_scores_well_through_an_mp4():
    rng = np.random.default_rng(1)
    position, color = [], []
    for i in range(24):
        program = sample_program(rng, float(rng.uniform(0, 50)))
        program = reverse(program, FRAMES) if i % 2 else program
        frames = decode_video(encode_video(render(program, FRAMES), 8.0, 10))
        found = measure(frames, program)
        assert list(found) == list(MEASURES)
        assert all(curve.shape == (FRAMES,) and curve.dtype == np.float32 for curve in found.values())
        known = np.isfinite(found["object_present"])
        assert (found["object_present"][known] == 1).all()
        assert found["background_error"].max() < 0.03
        position += found["position_error"][known].tolist()
        color += found["color_error"][known].tolist()
    assert np.quantile(position, 0.95) < 0.03
    assert np.quantile(color, 0.95) < 0.08


def test_a_shape_behind_another_is_measured_where_it_shows():
    back = Shape("square", "red", "stays still", 0.5, 0.5, 0.2, 0.0, 0.1)
    front = Shape("circle", "blue", "stays still", 0.6, 0.5, 0.16, 0.0)
    hidden = Shape("circle", "blue", "stays still", 0.5, 0.5, 0.4, 0.0)
    for program in (Program((back, front), "plain", "slate", 1), Program((back, hidden), "plain", "slate", 1)):
        found = means(render(program, 1), program)
        assert found["object_present"] == 1
        assert found["position_error"] < 0.01
        assert found["color_error"] < 0.01


def test_backwards_is_the_same_curve_backwards(program, frames):
    damaged = frames.copy()
    damaged[5:] //= 2
    forwards, backwards = measure(damaged, program), measure(damaged[::-1], reverse(program, FRAMES))
    for name in MEASURES:
        assert np.allclose(backwards[name], forwards[name][::-1], atol=1e-5, equal_nan=True), name


def test_erased_shape_is_absent_and_has_no_place(program, frames):
    _, ground, _ = render_layers(program, FRAMES)
    found = measure(np.round(255 * ground).astype(np.uint8), program)
    assert (found["object_present"] == 0).all()
    assert np.isnan(found["color_error"]).all()
    assert np.isnan(found["position_error"]).all()
    assert found["background_error"].max() < 0.005


def test_one_of_two_shapes_erased_is_half():
    left = Shape("circle", "red", "stays still", 0.25, 0.5, 0.15, 0.0)
    right = Shape("square", "blue", "stays still", 0.75, 0.5, 0.15, 0.0)
    both, rest = (Program(shapes, "plain", "tan", 1) for shapes in ((left, right), (left,)))
    assert means(render(rest, 2), both)["object_present"] == 0.5
    assert means(render(both, 2), both)["object_present"] == 1


def test_recoloured_shape_is_absent_and_a_tinge_is_measured(program, frames):
    assert means(render(program_of(color="cyan"), FRAMES), program)["object_present"] == 0
    _, _, cover = render_layers(program, FRAMES)
    tinged = np.clip(frames + cover * np.array([0, 0.12, 0]) * 255, 0, 255).astype(np.uint8)
    found, true = means(tinged, program), means(frames, program)
    assert found["object_present"] == 1
    assert found["color_error"] == pytest.approx(0.12, abs=0.02)
    assert true["color_error"] < 0.01
    assert found["background_error"] < 0.01


def test_displacement_is_measured_in_widths(program, frames):
    shape = program.shapes[0]
    moved = replace(program, shapes=(replace(shape, x=shape.x + 0.1, y=shape.y - 0.05),))
    found = means(render(moved, FRAMES), program)
    assert found["position_error"] == pytest.approx(np.hypot(0.1, 0.05), abs=0.015)
    assert found["object_present"] == 1
    round_the_torus = replace(program, shapes=(replace(shape, x=shape.x + 0.9),))
    assert means(render(round_the_torus, FRAMES), program)["position_error"] == pytest.approx(0.1, abs=0.015)


def test_a_shape_over_the_edge_is_one_shape(program):
    shape = program.shapes[0]
    here, there = (replace(program, shapes=(replace(shape, event="stays still", x=x),)) for x in (0.02, 0.98))
    assert means(render(here, 1), here)["position_error"] < 0.01
    assert means(render(there, 1), here)["position_error"] == pytest.approx(0.04, abs=0.01)


def test_wrong_direction_shows_late(program):
    found = measure(render(program_of("moves left"), FRAMES), program)["position_error"]
    assert found[0] < 0.01
    assert found[-1] == pytest.approx(2 * 0.02 * (FRAMES - 1), abs=0.02)


def test_tinted_background_is_measured_alone(program, frames):
    _, _, cover = render_layers(program, FRAMES)
    tint = (1 - cover) * np.array([0.0, 0.0, 0.3]) * 255
    found = means(np.clip(frames + tint, 0, 255).astype(np.uint8), program)
    assert found["background_error"] == pytest.approx(0.1, abs=0.01)
    assert found["position_error"] < 0.02


def test_over_saturation_pleases_no_measure(program, frames):
    grey = frames.mean(-1, keepdims=True)
    vivid = np.clip(grey + 1.4 * (frames - grey), 0, 255).astype(np.uint8)
    found, true = means(vivid, program), means(frames, program)
    assert found["color_error"] > true["color_error"] + 0.1
    assert found["background_error"] > true["background_error"] + 0.01
    assert found["object_present"] <= true["object_present"]


def test_frozen_clip_loses_the_place(program, frames):
    found = measure(np.repeat(frames[:1], FRAMES, 0), program)["position_error"]
    assert found[-1] == pytest.approx(0.02 * (FRAMES - 1), abs=0.02)


def test_noise_is_no_shape(program):
    noise = np.random.default_rng(0).integers(0, 256, (FRAMES, 32, 32, 3), np.uint8)
    assert means(noise, program)["object_present"] == 0


def test_what_cannot_be_told_from_the_background_is_not_looked_for():
    faded = program_of("fades out", start=44.0)
    found = measure(render(faded, FRAMES), faded)
    for name in ("object_present", "color_error", "position_error"):
        assert np.isnan(found[name]).all(), name
    assert np.isfinite(found["background_error"]).all()
    fading = program_of("fades out", start=0.0)
    known = np.isfinite(measure(render(fading, 49), fading)["object_present"])
    assert known[0]
    assert not known[-1]
    assert (np.diff(known.astype(int)) <= 0).all()  # seen, then not


def test_a_colour_that_passes_through_grey_is_not_looked_for_there():
    turning = program_of("turns red", color="cyan", texture="plain", ground="grey")
    between = np.array(COLORS["cyan"]) / 2 + np.array(COLORS["red"]) / 2
    assert np.linalg.norm(between - 0.46) < 0.2
    found = measure(render(turning, 65), turning)
    assert np.isnan(found["object_present"][32])
    assert np.isfinite(found["object_present"][[0, 64]]).all()
    assert np.nanmin(found["object_present"]) == 1

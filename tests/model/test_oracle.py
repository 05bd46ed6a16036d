"""The oracle: content with the truth, and each kind of damage shows in the measure meant for it."""

from dataclasses import replace

import numpy as np
import pytest

from model.oracle import MEASURES, SCALES, OracleError, measure
from model.toyworld import (
    CAMERAS,
    COLORS,
    EVENTS,
    IRREVERSIBLE,
    Program,
    Shape,
    caption,
    describe,
    parse,
    render,
    render_layers,
    reverse,
    reverse_caption,
    sample_program,
)
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


def largest(clips: list[tuple[np.ndarray, Program]]) -> dict[str, np.ndarray]:
    """All finite values of every measure over clips, sorted."""
    found = [measure(frames, program) for frames, program in clips]
    assert all(list(curves) == list(MEASURES) for curves in found)
    assert all(curve.shape == (FRAMES,) and curve.dtype == np.float32 for m in found for curve in m.values())
    values = {name: np.concatenate([curves[name] for curves in found]) for name in MEASURES}
    return {name: np.sort(value[np.isfinite(value)]) for name, value in values.items()}


def sampled(count: int, seed: int) -> list[Program]:
    rng = np.random.default_rng(seed)
    programs = [sample_program(rng, float(rng.uniform(0, 50))) for _ in range(count)]
    return [reverse(program, FRAMES) if i % 2 else program for i, program in enumerate(programs)]


def test_truth_has_no_error():
    found = largest([(render(program, FRAMES), program) for program in sampled(60, 0)])
    assert all(len(values) > 60 for values in found.values())
    assert found["object_present"][0] == 1
    limits = {"color_error": 0.01, "area_error": 0.05, "position_error": 0.008, "trajectory_error": 0.003}
    limits |= {"count_error": 0, "direction_error": 0, "order_error": 0, "background_error": 0.003, "error": 0.02}
    assert {name: found[name][-1] for name in limits if found[name][-1] > limits[name]} == {}


def test_truth_scores_well_through_an_mp4():
    programs = sampled(40, 1)
    found = largest([(decode_video(encode_video(render(p, FRAMES), 8.0, 10)), p) for p in programs])
    limits = {"color_error": 0.05, "area_error": 0.1, "position_error": 0.01, "trajectory_error": 0.005}
    limits |= {"count_error": 0, "direction_error": 0, "order_error": 0.02, "background_error": 0.01, "error": 0.06}
    over = {name: float(np.quantile(found[name], 0.97)) for name in limits}
    assert {name: value for name, value in over.items() if value > limits[name]} == {}
    assert (found["object_present"] == 1).mean() > 0.99
    assert found["background_error"][-1] < 0.02


def test_a_shape_behind_another_is_measured_where_it_shows():
    back = Shape("square", "red", "stays still", 0.5, 0.5, 0.2, 0.0, 0.1)
    front = Shape("circle", "blue", "stays still", 0.6, 0.5, 0.16, 0.0)
    hidden = Shape("circle", "blue", "stays still", 0.5, 0.5, 0.4, 0.0)
    for program in (Program((back, front), "plain", "slate", 1), Program((back, hidden), "plain", "slate", 1)):
        found = means(render(program, 1), program)
        assert found["object_present"] == 1
        assert found["position_error"] < 0.01
        assert found["color_error"] < 0.01


@pytest.mark.parametrize("event", [*EVENTS, *IRREVERSIBLE, "turns blue"])
@pytest.mark.parametrize("camera", ["", *CAMERAS])
def test_a_clip_played_backwards_is_judged_by_its_reversed_caption(event, camera):
    """Frames reversed, program reversed, caption rewritten: the same curves, backwards."""
    program = program_of(event, texture="cloudy", camera=camera, camera_speed=0.01 if camera else 0.0, start=5.0)
    said = parse(reverse_caption(caption(program)))
    backwards = reverse(program, FRAMES)
    assert said == describe(backwards)
    forwards, frames = measure(render(program, FRAMES), program), render(program, FRAMES)[::-1]
    for description in (None, said):
        found = measure(frames, backwards, description)
        for name in MEASURES:
            assert np.allclose(found[name], forwards[name][::-1], atol=1e-3, equal_nan=True), name
    # The caption that was not rewritten is wrong of the same frames, if it says anything about time.
    found = measure(frames, backwards, describe(program))
    timely = [n for n in ("direction_error", "order_error") if np.isfinite(found[n]).any()]
    wrong = {"direction_error": 0.0, "order_error": 0.0} | {n: float(np.nanmax(found[n])) for n in timely}
    moving, changing = event.startswith(("moves", "circles")), event.startswith(("grows", "shrinks", "turns", "fades"))
    assert wrong["direction_error"] == (1 if moving or camera else 0)
    cancels = event == "shrinks" and camera == "zooms in"  # no change of area is left to be seen
    assert wrong["order_error"] == (1 if changing and not cancels else 0)
    assert np.isfinite(found["order_error"]).any() == (changing and not cancels)


def test_a_caption_of_something_else_is_wrong_wherever_the_program_is_measured(program, frames):
    for other in ("moves up", "grows", "stays still"):
        found = measure(frames, program, describe(program_of(other)))
        assert (found["direction_error"][2:-2] == 1).all()
    assert (measure(frames, program, describe(program_of(color="blue")))["direction_error"][2:-2] == 1).all()
    two = program_of()
    two = replace(two, shapes=(replace(two.shapes[0], color="blue"), *two.shapes))
    found = measure(render(two, FRAMES), two, describe(program))
    assert np.nanmin(found["direction_error"]) == 1
    assert np.nanmax(measure(frames, program, describe(program))["direction_error"]) == 0


def test_backwards_is_the_same_curve_backwards(program, frames):
    damaged = frames.copy()
    damaged[5:] //= 2
    forwards, backwards = measure(damaged, program), measure(damaged[::-1], reverse(program, FRAMES))
    for name in MEASURES:
        assert np.allclose(backwards[name], forwards[name][::-1], atol=1e-4, equal_nan=True), name


def test_erased_shape_is_absent_and_has_no_place(program, frames):
    _, ground, _ = render_layers(program, FRAMES)
    found = measure(np.round(255 * ground).astype(np.uint8), program)
    assert (found["object_present"] == 0).all()
    assert np.isnan(found["color_error"]).all()
    assert np.isnan(found["position_error"]).all()
    assert (found["count_error"] == 1).all()
    assert found["background_error"].max() < 0.005
    # Present, number, colour, area, place: all wrong; the path and the direction too, where they are measured.
    assert found["error"][0] == pytest.approx(5 / 6, abs=0.01)
    assert found["error"][4] == pytest.approx(7 / 8, abs=0.01)


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


# ---------------------------------------------------------------- each damage in its own measure

UNHURT = {"object_present": 1.0} | dict.fromkeys(MEASURES[1:-1], 0.0)
TOLERANCE = {"color_error": 0.02, "area_error": 0.03, "position_error": 0.01, "trajectory_error": 0.004}


def moved(frames: np.ndarray, program: Program) -> set[str]:
    """The measures, but `error`, in which frames are off the true values; `error` itself has to agree."""
    found, true = means(frames, program), means(render(program, len(frames)), program)
    assert set(found) <= set(true)
    off = {name for name in true if name != "error" and name not in found}
    off |= {n for n in found if n != "error" and abs(found[n] - UNHURT[n]) > TOLERANCE.get(n, 0.01)}
    assert (found["error"] > true["error"] + 0.02) == bool(off)
    return off


def test_a_second_shape_moves_the_number(program, frames):
    shape = replace(program.shapes[0], color="yellow", x=0.8, y=0.9, radius=0.1, event="stays still")
    for number in (1, 2):
        extra = [replace(shape, x=0.8 - 0.6 * i) for i in range(number)]
        both = np.stack([render(replace(program, shapes=(e,)), FRAMES) for e in extra])
        cover = np.stack([render_layers(replace(program, shapes=(e,)), FRAMES)[2] for e in extra])
        damaged = np.where(cover[0] > 0.5, both[0], frames)
        damaged = np.where(cover[-1] > 0.5, both[-1], damaged)
        assert moved(damaged, program) == {"count_error", "background_error"}
        assert (measure(damaged, program)["count_error"] == number).all()


def test_a_second_shape_of_the_same_colour_counts():
    program = program_of("stays still")
    twin = replace(program, shapes=(*program.shapes, replace(program.shapes[0], x=0.9)))
    assert (measure(render(twin, 2), program)["count_error"] == 1).all()


def test_a_shift_of_colour_moves_the_colour(program, frames):
    _, _, cover = render_layers(program, FRAMES)
    damaged = np.clip(frames + cover * np.array([0.0, 0.12, 0.0]) * 255, 0, 255).astype(np.uint8)
    assert moved(damaged, program) == {"color_error"}


@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_another_size_moves_the_area(factor, program):
    shape = program.shapes[0]
    damaged = render(replace(program, shapes=(replace(shape, radius=shape.radius * factor),)), FRAMES)
    larger = {"background_error"} if factor > 1 else set()  # it covers some
    assert moved(damaged, program) == {"area_error"} | larger
    assert means(damaged, program)["area_error"] == pytest.approx(2 * abs(np.log(factor)), abs=0.02)


def test_a_jump_moves_the_path_and_the_place(program):
    shape = program.shapes[0]
    jumped = replace(program, shapes=(replace(shape, y=shape.y + 0.1),))
    damaged = render(program, FRAMES)
    damaged[4:] = render(jumped, FRAMES)[4:]
    found = measure(damaged, program)
    assert moved(damaged, program) == {"trajectory_error", "position_error"}
    assert found["trajectory_error"][2:6] == pytest.approx([0.0283, 0.0245, 0.0245, 0.0283], abs=0.002)
    steady = means(render(jumped, FRAMES), program)
    assert steady["trajectory_error"] < 0.002 < 0.09 < steady["position_error"]


def test_trembling_moves_the_path(program, frames):
    damaged = frames.copy()
    damaged[1::2] = np.roll(damaged[1::2], 1, axis=1)
    assert means(damaged, program)["trajectory_error"] > 0.4 / 32


TIMES = {
    "moves left": "direction_error",
    "circles counterclockwise": "direction_error",
    "grows": "order_error",
    "shrinks": "order_error",
    "turns blue": "order_error",
    "fades out": "order_error",
}


@pytest.mark.parametrize("event", TIMES)
@pytest.mark.parametrize("backwards", [False, True])
def test_time_that_stands_still_or_runs_back_moves_direction_or_order(event, backwards):
    program = program_of(event, start=4.0)
    program = reverse(program, FRAMES) if backwards else program
    frames = render(program, FRAMES)
    for damaged, value in ((frames[::-1], 1), (np.repeat(frames[3:4], FRAMES, 0), 0.5)):
        found = measure(damaged, program)
        assert np.isnan(found[TIMES[event]][[0, 1, -2, -1]]).all()
        assert found[TIMES[event]][2:-2] == pytest.approx(np.full(FRAMES - 4, value), abs=0.02)
        assert (found["object_present"] == 1).all()
        assert (found["count_error"] == 0).all()
        assert np.nanmax(found["trajectory_error"]) < 0.01


@pytest.mark.parametrize("camera", CAMERAS)
def test_the_camera_has_a_direction(camera):
    program = program_of("stays still", camera=camera, camera_speed=0.012, texture="checkered", start=3.0)
    frames = render(program, FRAMES)
    for damaged, value in ((frames, 0), (frames[::-1], 1), (np.repeat(frames[:1], FRAMES, 0), 0.5)):
        found = measure(damaged, program)["direction_error"]
        assert found[2:-2] == pytest.approx(np.full(FRAMES - 4, value), abs=0.02)
    plain = replace(program, texture="plain")
    assert np.isnan(measure(render(plain, FRAMES), plain)["direction_error"]).all()


@pytest.mark.parametrize("event", ["moves right", "circles clockwise"])
def test_an_honest_model_that_guesses_another_speed_only_leaves_the_place(event):
    program = program_of(event)
    slower = replace(program, shapes=(replace(program.shapes[0], speed=0.014),))
    found = means(render(slower, 14), program)
    assert found["position_error"] > 0.03
    assert found["direction_error"] == 0
    assert found["trajectory_error"] < 0.004


def test_standing_still_and_turning_in_place_have_no_direction():
    for event in ("stays still", "spins in place"):
        found = measure(render(program_of(event), FRAMES), program_of(event))
        assert np.isnan(found["direction_error"]).all()
        assert np.isnan(found["order_error"]).all()


def test_the_composite_is_the_declared_mean(program, frames):
    assert set(SCALES) == set(MEASURES) - {"error"}
    damaged = np.clip(frames.astype(int) + 12, 0, 255).astype(np.uint8)
    found = measure(damaged, program)
    parts = [(1 - found[n] if n == "object_present" else found[n]) / SCALES[n] for n in SCALES]
    assert found["error"] == pytest.approx(np.nanmean(np.minimum(parts, 1), axis=0), abs=1e-5)
    worse = [means(np.clip(frames.astype(int) + d, 0, 255).astype(np.uint8), program)["error"] for d in (0, 6, 12, 24)]
    assert (np.diff(worse) > 0).all()


@pytest.mark.parametrize("size", [16, 48, 64])
def test_other_sizes_have_the_same_measures(size, program):
    found = means(render(program, FRAMES, size), program)
    assert found["error"] < 0.02
    slow = render(replace(program, shapes=(replace(program.shapes[0], x=0.5),)), FRAMES, size)
    assert means(slow, program)["position_error"] == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("num_frames", [1, 4, 5])
def test_a_short_clip_has_no_window(num_frames, program):
    found = measure(render(program, num_frames), program)
    windows = ["trajectory_error", "direction_error"]
    assert all(np.isfinite(found[name]).sum() == max(0, num_frames - 4) for name in windows)
    assert np.isfinite(found["error"]).all()


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((4, 32, 32, 3), np.float32),
        np.zeros((4, 32, 48, 3), np.uint8),
        np.zeros((32, 32, 3), np.uint8),
        np.zeros((0, 32, 32, 3), np.uint8),
        np.zeros((4, 4, 4, 3), np.uint8),
    ],
)
def test_frames_of_another_kind_are_refused(frames, program):
    with pytest.raises(OracleError, match="frames must be"):
        measure(frames, program)

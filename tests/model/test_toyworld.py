"""The toy world keeps its word: what a program says, its caption, its frames and its reverse are one thing."""

import json
from dataclasses import replace

import numpy as np
import pytest

from model import toyworld
from model.toyworld import (
    CAMERAS,
    COLORS,
    EVENTS,
    GROUNDS,
    HORIZON,
    IRREVERSIBLE,
    SHAPES,
    TEXTURES,
    Program,
    Shape,
    caption,
    describe,
    from_json,
    parse,
    render,
    render_layers,
    reverse,
    reverse_caption,
    reverse_description,
    sample_program,
    states,
    to_json,
    to_text,
)

ALL_EVENTS = [*EVENTS, *IRREVERSIBLE, "turns blue"]


def one(event="stays still", camera="", start=0.0, shape="triangle", radius=0.18, texture="cloudy", color="red"):
    """A program of one shape that shows what happens to it."""
    thing = Shape(shape, color, event, 0.42, 0.45, radius, 0.02, 0.7)
    return Program((thing,), texture, "slate", 7, camera, 0.011 if camera else 0.0, start)


@pytest.fixture(scope="module")
def programs():
    """3,000 programs; every second one plays backwards, every third starts at a broken time."""
    rng = np.random.default_rng(0)
    drawn = [sample_program(rng, 17.0 if i % 3 else float(rng.uniform(0, 50))) for i in range(3000)]
    return [reverse(p, 21) if i % 2 else p for i, p in enumerate(drawn)]


# ---------------------------------------------------------------- programs


def test_programs_and_frames_follow_from_the_seed():
    first, again, other = (sample_program(np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert first == again != other
    assert np.array_equal(render(first, 4), render(again, 4))
    assert not np.array_equal(render(first, 4), render(other, 4))


def test_all_that_can_happen_is_drawn(programs):
    told = [describe(p) for p in programs]
    subjects = [s for d in told for s in d.subjects]
    assert {color for color, _, _ in subjects} == set(COLORS)
    assert {shape for _, shape, _ in subjects} == set(SHAPES)
    assert {event for _, _, event in subjects} == {*EVENTS, *IRREVERSIBLE, *(f"turns {c}" for c in COLORS)}
    assert {d.texture for d in told} == set(TEXTURES)
    assert {d.ground for d in told} == set(GROUNDS)
    assert {d.camera for d in told} == {"", *CAMERAS}
    assert {len(d.subjects) for d in told} == {1, 2}
    assert {toyworld.reversal_class(d) for d in told} == {"invariant", "equivariant", "irreversible"}


def test_two_shapes_differ_in_colour_and_none_turns_into_its_own(programs):
    for program in programs:
        colors = [s.color for s in program.shapes]
        turned = [s.event.removeprefix("turns ") for s in program.shapes if s.event.startswith("turns ")]
        assert len({*colors, *turned}) == len(colors) + len(turned)


@pytest.mark.parametrize("event", [e for e in ALL_EVENTS if e != "stays still"])
def test_every_event_changes_the_picture(event):
    frames = render(one(event), 8).astype(int)
    assert np.abs(frames[0] - frames[-1]).max() > 10


def test_what_stays_still_does():
    frames = render(one(), 8)
    assert (frames == frames[0]).all()


@pytest.mark.parametrize("camera", CAMERAS)
def test_every_camera_changes_the_background(camera):
    _, ground, _ = render_layers(one(camera=camera), 9)
    assert np.abs(ground[0] - ground[-1]).max() > 0.01


# ---------------------------------------------------------------- backwards


def test_reversing_twice_is_the_program_and_the_caption(programs):
    for program in programs:
        twice = reverse(reverse(program, 21), 21)
        assert twice.start == pytest.approx(program.start, abs=1e-9)
        assert replace(twice, start=program.start) == program
        text = caption(program)
        assert reverse_caption(reverse_caption(text)) == text


def test_caption_of_the_reversed_program_is_the_reversed_caption(programs):
    for program in programs:
        assert caption(reverse(program, 21)) == reverse_caption(caption(program))


@pytest.mark.parametrize("camera", ["", "pans left", "zooms in"])
@pytest.mark.parametrize("event", ALL_EVENTS)
def test_reversed_program_renders_the_frames_backwards(event, camera):
    program = one(event, camera, start=13.37)
    forwards, backwards = (render(p, 7).astype(int) for p in (program, reverse(program, 7)))
    assert np.abs(backwards - forwards[::-1]).max() <= 1


def test_reversed_programs_render_the_frames_backwards(programs):
    for program in programs[::100]:
        forwards, backwards = (render(p, 3).astype(int) for p in (program, reverse(program, 3)))
        assert np.abs(backwards - forwards[::-1]).max() <= 1


@pytest.mark.parametrize("event", ["moves left", "circles clockwise", "grows", "turns blue", "fades out"])
def test_words_and_frames_agree_on_direction(event):
    program = one(event)
    state = states(program, 8)[0]
    if event == "moves left":
        assert state.center[-1, 0] < state.center[0, 0]
    elif event == "circles clockwise":  # y points down: turning from +x towards +y is clockwise on the screen
        (x0, y0), (x1, y1) = state.center[:2] - [program.shapes[0].x, program.shapes[0].y]
        assert x0 * y1 - y0 * x1 > 0
    elif event == "grows":
        assert (np.diff(state.radius) > 0).all()
    elif event == "turns blue":
        far = np.linalg.norm(state.color - np.array(COLORS["blue"]), axis=-1)
        assert (np.diff(far) < 0).all()
    else:
        assert (np.diff(state.alpha) < 0).all()


def test_a_shape_grows_from_where_the_reverse_shrinks_to():
    grown = states(one("grows"), int(HORIZON) + 1)[0].radius
    shrunk = states(one("shrinks"), int(HORIZON) + 1)[0].radius
    assert np.allclose(grown, shrunk[::-1])


# ---------------------------------------------------------------- frames and states


def test_short_clip_is_a_window_of_a_long_one():
    long, window = render(one("moves up", "pans left"), 12), render(one("moves up", "pans left", start=5.0), 4)
    assert np.abs(long[5:9].astype(int) - window).max() <= 1


@pytest.mark.parametrize("camera", ["", *CAMERAS])
@pytest.mark.parametrize("event", ["moves right", "moves down", "circles clockwise", "spins in place"])
def test_states_are_where_the_coverage_is(event, camera):
    program = one(event, camera, start=2.0, shape="square", radius=0.1)
    _, _, cover = render_layers(program, 6)
    center, scale = toyworld.camera_view(program, 6)
    true = (states(program, 6)[0].center - center + 0.5) % 1.0 - 0.5
    true = true * scale[:, None] + 0.5
    axis = np.exp(2j * np.pi * (np.arange(32) + 0.5) / 32)
    weights = cover[..., 0]
    seen = np.angle(np.stack([(weights.sum(1) * axis).sum(-1), (weights.sum(2) * axis).sum(-1)], -1)) / (2 * np.pi)
    assert np.abs((seen - true + 0.5) % 1.0 - 0.5).max() < 0.01


def test_coverage_and_colour_are_the_states():
    program = one("turns blue", start=20.0, shape="circle", texture="plain")
    picture, ground, cover = render_layers(program, 5)
    state = states(program, 5)[0]
    inside = cover[..., 0] > 0.999
    for t in range(5):
        assert np.allclose(picture[t][inside[t]], state.color[t])
        assert np.allclose(picture[t][cover[t, ..., 0] == 0], ground[t][cover[t, ..., 0] == 0])
        assert cover[t].sum() / 32**2 == pytest.approx(np.pi * state.radius[t] ** 2, rel=0.03)


def test_no_pixel_is_clipped(programs):
    for program in programs[:40]:
        picture, _, _ = render_layers(program, 2)
        assert picture.min() > 0
        assert picture.max() < 1


@pytest.mark.parametrize("texture", TEXTURES)
def test_textures_have_no_seam(texture):
    axis = np.linspace(-0.5, 1.5, 9)
    u, v = np.meshgrid(axis, axis)
    for seed in range(5):
        program = replace(one(texture=texture), texture_seed=seed)
        here = toyworld._ground(program, u, v)
        assert np.allclose(here, toyworld._ground(program, u + 1, v))
        assert np.allclose(here, toyworld._ground(program, u, v + 1))


# ---------------------------------------------------------------- language


def test_parse_is_the_inverse_of_to_text(programs):
    for program in programs:
        for description in (describe(program), reverse_description(describe(program))):
            assert parse(to_text(description)) == description


def test_captions_use_the_vocabulary_alone(programs):
    words = {w for p in programs for w in caption(p).lower().replace(",", " ,").split()}
    assert words <= set(toyworld.vocabulary())
    assert set(toyworld.vocabulary()) - words <= {"plain"}  # understood, never written


@pytest.mark.parametrize(
    "text",
    [
        "A Red Circle MOVES left over a Grey background.",
        "  a red circle\tmoves left over\u00a0a grey background ",
        "a red circle moves left over a plain grey background",
        "an red circle moves left over an grey background",
    ],
)
def test_sentences_are_understood_however_they_are_spaced(text):
    assert to_text(parse(text)) == "a red circle moves left over a grey background"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a red circle",
        "a dog moves left over a grey background",
        "a red circle moves sideways over a grey background",
        "a red circle moves left over a grey background, the camera spins",
        "a red circle moves left over a grey background and a blue square",
        "a red circle moves left and a red circle moves up and a red circle grows over a grey background",
        "so a red circle moves left over a grey background",
        "a red circle moves left over a grey background..",
        "a red circle \u017fpins in place over a grey background",  # long s
        "a red c\u0130rcle grows over a grey background",
    ],
)
def test_other_text_is_no_sentence(text):
    assert parse(text) is None
    assert reverse_caption(text) is None


@pytest.mark.parametrize(
    ("text", "backwards"),
    [
        ("a red circle moves left over a grey background", "a red circle moves right over a grey background"),
        ("an orange square grows over an olive background", "an orange square shrinks over an olive background"),
        ("a red circle turns blue over a tan background", "a blue circle turns red over a tan background"),
        ("a red square spins in place over a tan background", "a red square spins in place over a tan background"),
        (
            "a red circle fades out over a tan background",
            "A reversed video of a red circle fades out over a tan background",
        ),
        (
            "a red circle stays still over a striped tan background, the camera zooms in",
            "a red circle stays still over a striped tan background, the camera zooms out",
        ),
    ],
)
def test_reversed_sentences(text, backwards):
    assert reverse_caption(text) == backwards
    assert reverse_caption(backwards) == text


# ---------------------------------------------------------------- JSON


def test_json_gives_the_program_back(programs):
    for program in programs[:300]:
        text = to_json(program)
        assert "\n" not in text
        assert from_json(text) == program


def altered(**changes) -> str:
    data = json.loads(to_json(one()))
    shape = {k.removeprefix("shape_"): v for k, v in changes.items() if k.startswith("shape_")}
    data["shapes"][0] |= shape
    return json.dumps(data | {k: v for k, v in changes.items() if not k.startswith("shape_")})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        "7",
        '"shapes"',
        "{}",
        '{"shapes": null}',
        '{"shapes": [1]}',
        "[" * 100_000,
        altered(shapes=[]),
        altered(colour="red"),
        altered(texture="tartan"),
        altered(ground=["grey"]),
        altered(camera="rolls"),
        altered(direction=0),
        altered(direction="-1"),
        altered(start=float("nan")),
        altered(start=10**400),
        altered(camera_speed=None),
        altered(texture_seed=-1),
        altered(texture_seed=1.5),
        altered(shape_shape="dog"),
        altered(shape_color="beige"),
        altered(shape_color={}),
        altered(shape_event="explodes"),
        altered(shape_event="turns beige"),
        altered(shape_radius="0.2"),
        altered(shape_x=float("inf")),
    ],
    ids=lambda text: text[-40:],
)
def test_json_of_no_program_is_refused(text):
    with pytest.raises(ValueError, match="not a toy world program"):
        from_json(text)


def test_refusal_says_what_is_allowed():
    with pytest.raises(ValueError, match="texture 'tartan'; expected one of striped, checkered, cloudy, plain"):
        from_json(altered(texture="tartan"))

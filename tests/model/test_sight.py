"""The instrument against what is known without looking: areas, centres, colours, numbers, and the picture it draws."""

from dataclasses import replace

import numpy as np
import pytest

from model.sight import _patches, _thick, compare, layers, shown_colors
from model.toyworld import COLORS, Program, Shape, camera_view, render, render_layers, sample_program, states

FRAMES = 8


def clip_of(*shapes: Shape, **changes) -> Program:
    return replace(Program(shapes, "striped", "slate", 3), **changes)


def test_the_picture_it_draws_is_the_renderer_s():
    rng = np.random.default_rng(5)
    for _ in range(12):
        program = sample_program(rng, float(rng.uniform(0, 50)))
        ground, cover = layers(program, FRAMES, 32)
        _, true_ground, true_cover = render_layers(program, FRAMES, 32)
        alpha = np.stack([state.alpha for state in states(program, FRAMES)])[..., None, None]
        assert ground.dtype == cover.dtype == np.float32
        assert np.abs(np.moveaxis(ground, 0, -1) - true_ground).max() < 0.01
        assert np.abs(np.moveaxis(cover * alpha, 0, -1) - true_cover).max() < 1e-4


@pytest.mark.parametrize("event", ["moves right", "circles clockwise", "grows", "shrinks", "turns blue", "stays still"])
@pytest.mark.parametrize("camera", ["", "pans up", "zooms in"])
def test_it_finds_a_circle_where_it_is(event, camera):
    program = clip_of(Shape("circle", "red", event, 0.5, 0.5, 0.12, 0.01, 0.7), camera=camera, camera_speed=0.01)
    seen = compare(render(program, FRAMES), program).seen
    state = states(program, FRAMES)[0]
    middle, scale = camera_view(program, FRAMES)
    place = ((state.center - middle + 0.5) % 1 - 0.5) * scale[:, None] + 0.5
    assert np.abs(seen.center[0] - (place[:, 0] + 1j * place[:, 1])).max() < 0.005
    radius = np.sqrt(seen.area[0] / np.pi) / 32
    assert np.abs(radius / (state.radius * scale) - 1).max() < 0.03
    assert np.abs(seen.color[0] - state.color).max() < 0.02
    assert (seen.counts == 1).all()


def test_an_opacity_is_a_colour_on_the_way_to_the_background():
    program = clip_of(Shape("square", "white", "fades out", 0.5, 0.5, 0.18, 0.0), texture="plain", start=4.0)
    sights = compare(render(program, FRAMES), program)
    assert np.abs(sights.seen.color - shown_colors(program, FRAMES)).max() < 0.02
    assert np.abs(np.log(sights.seen.area / sights.visible)).max() < 0.05  # however transparent


def test_it_counts_what_it_knows_and_what_it_does_not():
    one = Shape("circle", "red", "stays still", 0.25, 0.3, 0.12, 0.0)
    program = clip_of(one)
    for color, place in (("red", 0.75), ("yellow", 0.75), ("red", 0.02), ("cyan", 0.98)):  # also over the edge
        both = clip_of(replace(one, y=0.75), replace(one, color=color, x=place))
        assert (compare(render(both, 2), program).seen.counts == 2).all(), (color, place)
    _, ground, _ = render_layers(program, 2)
    assert (compare(np.round(255 * ground).astype(np.uint8), program).seen.counts == 0).all()


def test_patches_join_round_the_torus_and_in_their_own_frame_alone():
    mask = np.zeros((3, 16, 16), bool)
    mask[0, :3, :3] = mask[0, -3:, -3:] = mask[0, :3, -3:] = mask[0, -3:, :3] = True  # one, over a corner
    mask[1, 5:8, 5:8] = mask[1, 10:12, 10:14] = True
    mask[2, 4:12, 4] = True  # a line is no patch
    mask = _thick(mask)
    assert _patches(mask, torus=True)[0].tolist() == [1, 2, 0]
    assert _patches(mask, torus=False)[0].tolist() == [4, 2, 0]
    sizes = np.zeros((1, 32, 32), bool)
    sizes[0, :2, :3] = sizes[0, 10:13, 10:14] = sizes[0, 20:26, 20:26] = True  # 6, 12 and 36 pixels
    assert _patches(sizes, torus=False)[:, 0].tolist() == [3, 2, 1]


def test_large_pictures_are_looked_at_in_blocks(monkeypatch):
    program = clip_of(Shape("circle", "red", "turns blue", 0.4, 0.5, 0.18, 0.02), camera="pans left", camera_speed=0.01)
    frames = render(program, FRAMES)
    whole = compare(frames, program)
    for block in (1, 3 * 32 * 32, 7 * 32 * 32):
        monkeypatch.setattr("model.sight.BLOCK", block)
        parts = compare(frames, program)
        for name in ("area", "center", "color", "counts", "flow"):
            assert np.allclose(getattr(parts.seen, name), getattr(whole.seen, name), rtol=1e-4), name
        assert np.allclose(parts.background, whole.background, rtol=1e-4)


@pytest.mark.parametrize("camera", ["pans left", "pans down"])
@pytest.mark.parametrize("speed", [0.006, 0.012])
def test_the_flow_of_the_background_is_the_speed_of_the_camera(camera, speed):
    shape = Shape("circle", "red", "moves up", 0.4, 0.5, 0.12, 0.02)
    program = clip_of(shape, camera=camera, camera_speed=speed, texture="cloudy")
    frames = render(program, FRAMES)
    change, slope, pixels = compare(frames, program).seen.flow
    assert (pixels > 400).all()
    assert np.allclose(change / slope, 32 * speed, rtol=0.1)
    change, slope, _ = compare(frames[::-1], program).seen.flow
    assert np.allclose(change / slope, -32 * speed, rtol=0.1)
    assert not compare(frames, replace(program, camera="")).seen.flow.any()


def test_colours_of_the_world_are_told_apart():
    for name, color in COLORS.items():
        program = clip_of(Shape("square", name, "stays still", 0.5, 0.5, 0.2, 0.0), texture="plain")
        others = clip_of(Shape("square", "red" if name != "red" else "blue", "stays still", 0.5, 0.5, 0.2, 0.0))
        frames = render(program, 1)
        assert np.isfinite(compare(frames, program).seen.area).all(), color
        assert np.isnan(compare(frames, others).seen.area).all(), color

"""Exact measures in the toy world: what a program says should be there, against the frames that are.

Ten curves a clip, none of which an over-saturated, blurred or frozen picture can please. Notable:

- The true picture is drawn and looked at with the very same instrument as the frames, so that what the instrument
  cannot do (a shape cut off by the picture's edge, hidden by another, half faded) is no error of the frames; where it
  fails on the true picture, nothing is asked of the frames (NaN).
- A model cannot know a clip's exact speeds from its first frames, so that positions, colours and areas of honest models
  leave the true ones as time goes by; that is what a control is for. Three measures ask for no more than the caption
  says: `trajectory_error` takes any steady difference from the true path, `direction_error` and `order_error` are
  content with half of the true speed.
- A shape is found by its colour: those it has anywhere in the clip, so that a clip played backwards shows its shapes,
  in the wrong order. Turning in place has no direction in the caption and is not measured.

Legend: T frames, K shapes, H = W = S pixels, planes [3, T, S, S] are RGB in 0..1.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np

from model import sight, toyworld
from model.sight import View
from model.toyworld import COLORS, GROUNDS, Description, Program, Shape

MEASURES = (
    "object_present",
    "count_error",
    "color_error",
    "area_error",
    "position_error",
    "trajectory_error",
    "direction_error",
    "order_error",
    "background_error",
    "error",
)
# `error` is the mean of the others, each divided by this and cut off at 1. Declared once, fitted to nothing: an object
# too many; the distance at which a colour is another; half or twice the area; a quarter of the picture; a jump by that;
# the wrong direction, the wrong order; a background that is off by the strength of its texture.
SCALES = {
    "object_present": 1.0,
    "count_error": 1.0,
    "color_error": 0.25,
    "area_error": float(np.log(2)),
    "position_error": 0.25,
    "trajectory_error": 0.0625,
    "direction_error": 1.0,
    "order_error": 1.0,
    "background_error": 0.1,
}
REACH = 2  # frames before and after that a measure of change looks at
MIN_SHARE = 0.25  # a shape is there while this share of its true area shows its colour
MIN_PIXELS = 10  # a shape of which less than this is to be seen is not looked for,
MIN_CONTRAST = 0.25  # nor one whose colour comes closer than this to the background's (fading, turning)
MIN_APART = 0.2  # or to one that the other shape has in the clip,
TRUTH_WITHIN = 1.25  # nor one whose area the instrument misses by more than this factor in the true picture
MIN_MOVE = 1.0  # pixels, over the window: changes of the true picture that are less are not asked of the frames
MIN_TURN = 0.2  # radians
ORBIT = 0.18  # widths: the radius on which toyworld's shapes circle
MIN_CHANGE = {"grows": 0.3, "shrinks": 0.3, "turns": 0.03, "fades": 0.03}  # pixels; RGB distance
MIN_SLOPE = 0.16  # of luma, RMS, per width: a background flatter than this shows no camera


class OracleError(ValueError):
    """Frames that no clip of the toy world has."""


def measure(frames: np.ndarray, program: Program, description: Description | None = None) -> dict[str, np.ndarray]:
    """Curves [T] of float32 for frames uint8 [T,S,S,3] of a program's clip; NaN where there is nothing to measure.

    All but three are of one frame; means over the shapes that can be measured; 0 is best but for the first:

    object_present    share of the shapes that show a colour of theirs, anywhere, on a quarter of their area; 1 is best
    count_error       patches of any colour of the world (COLORS) too many or too few, 0, 1, 2, ...; a shape that can
                      hardly be made out in the true picture may be there or not
    color_error       RGB distance (0..1.73) of the shape's true colour now to the mean of its inside
    area_error        |ln(area / true area)| of what is to be seen of the shape; 0.69 is half or twice
    position_error    distance of the shape's centre to the true one, in widths, round the torus (0..0.71); both are
                      centres of what is to be seen of it
    background_error  mean absolute RGB error (0..1) against the true background where no shape should be

    Three are of the five frames around each, NaN for the first and last two, and where a shape is not found in them:

    trajectory_error  RMS residual, in widths, of (centre - true centre) against its best constant velocity: a path as
                      smooth as the true one but of another speed has next to 0 (on a line 0, on a circle up to 0.01);
                      a jump by d has 0.24 d to 0.28 d while the window holds it
    direction_error   0 where a shape that `moves` or `circles` goes the way the caption says, at half its speed or
                      more, 0.5 where it stands still, 1 where it goes the other way at half its speed or more: with p
                      the part of the true change that is seen over the window (displacement along the true one; angle
                      round the true circle's centre, NaN where it is off that circle by half the radius), 0.5 - p cut
                      to 0..1. Likewise the background of a camera that pans or zooms, by its optical flow along the
                      camera's way (Lucas and Kanade 1981, with one unknown)
    order_error       the same for states in time: sqrt(area) of what `grows` or `shrinks`, the way from one colour to
                      the other of what `turns COLOR`, the opacity of what `fades out`

    error             the mean of the above (1 - object_present), each divided by SCALES and cut off at 1, over those
                      that the true clip has; a shape not found counts 1 in each of its measures: 0..1

    `description` is what a caption says of the clip (toyworld.parse), where that is to be judged and not the frames
    alone: direction and order are then those it says, and wherever the program's are measured, a subject or camera
    that is neither the program's nor its reverse has 1. Raises OracleError for frames of another dtype or shape.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != (frames.shape[1],) * 2 + (3,):
        raise OracleError(f"frames must be uint8 [T, S, S, 3], saw {frames.dtype} {list(frames.shape)}")
    num_frames, size = frames.shape[:2]
    if num_frames < 1 or size < 8:
        raise OracleError(f"frames must be at least one and 8x8 pixels large, saw {list(frames.shape)}")
    sights = sight.compare(frames, program)
    true, seen = sights.true, sights.seen
    known = _known(program, sights)
    signs = _signs(program, description)

    there = np.nan_to_num(seen.area) >= MIN_SHARE * true.area
    seen = _only(seen, there)
    gap = _wrap(seen.center - true.center)
    low, high = true.counts[2] - (~known).sum(0), true.counts[0] + (~known).sum(0)
    values = {
        "object_present": there.astype(float),
        "count_error": np.maximum(0, np.maximum(low - seen.counts[1], seen.counts[1] - high))[None],
        "color_error": np.linalg.norm(seen.color - true.color, axis=-1),
        "area_error": np.abs(np.log(seen.area / true.area)),
        "position_error": np.abs(gap),
        "trajectory_error": _unsteadiness(gap),
        "background_error": sights.background[None],
    }
    wanted = dict.fromkeys(values, known) | {"trajectory_error": _whole(known)}
    wanted |= {name: np.isfinite(values[name]) for name in ("count_error", "background_error")}
    values["direction_error"], wanted["direction_error"] = _directions(program, true, seen, known, signs, size)
    values["order_error"], wanted["order_error"] = _orders(program, true, seen, known, signs)
    curves = {name: _mean(np.where(wanted[name], values[name], np.nan)) for name in SCALES}
    curves["error"] = _mean(np.stack([_part(name, values[name], wanted[name]) for name in SCALES]))
    return {name: curves[name].astype(np.float32) for name in MEASURES}


def _only(seen: View, there: np.ndarray) -> View:
    """The view without the shapes that are not there."""
    area, center = np.where(there, seen.area, np.nan), np.where(there, seen.center, np.nan)
    return replace(seen, area=area, center=center, color=np.where(there[..., None], seen.color, np.nan))


def _part(name: str, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Share [T] of a measure [., T] in `error`: 0..1, NaN where the true clip has no such measure."""
    bad = (1 - values if name == "object_present" else values) / SCALES[name]
    return _mean(np.where(wanted, np.where(np.isfinite(bad), np.minimum(bad, 1), 1.0), np.nan))


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis of what is not NaN; NaN where all is."""
    finite = np.isfinite(values)
    total = np.where(finite, values, 0).sum(0)
    return np.where(finite.any(0), total / np.maximum(finite.sum(0), 1), np.nan)


# ---------------------------------------------------------------- change over the window


def _whole(known: np.ndarray) -> np.ndarray:
    """Where all of the window is known: [K, T]."""
    padded = np.pad(known, ((0, 0), (REACH, REACH)))
    return np.logical_and.reduce([padded[:, i : i + known.shape[1]] for i in range(2 * REACH + 1)])


def _change(curve: np.ndarray) -> np.ndarray:
    """curve(t + REACH) - curve(t - REACH) of curves [K, T], NaN where the window does not fit."""
    change = np.full_like(curve, np.nan)
    if curve.shape[-1] > 2 * REACH:
        change[:, REACH:-REACH] = curve[:, 2 * REACH :] - curve[:, : -2 * REACH]
    return change


def _sums(pairs: np.ndarray) -> np.ndarray:
    """Sums [., T - 2 REACH] of what is of pairs of frames [., T - 1] over the windows."""
    return np.stack([pairs[:, i : pairs.shape[1] + 1 - 2 * REACH + i] for i in range(2 * REACH)]).sum(0)


def _unsteadiness(gap: np.ndarray) -> np.ndarray:
    """RMS residual [K, T] of complex gaps against their best line over the window."""
    residual = np.full(gap.shape, np.nan)
    count, num_frames = 2 * REACH + 1, gap.shape[1]
    if num_frames < count:
        return residual
    window = np.stack([gap[:, i : num_frames - count + 1 + i] for i in range(count)])
    window = _wrap(window - window[REACH])  # a gap that goes round the torus is no jump
    steps = np.arange(-REACH, REACH + 1.0)[:, None, None]
    window = window - window.mean(0) - steps * (steps * window).sum(0) / (steps**2).sum()
    residual[:, REACH:-REACH] = np.sqrt((np.abs(window) ** 2).mean(0))
    return residual


def _directions(
    program: Program, true: View, seen: View, known: np.ndarray, signs: list[int], size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Errors [K + 1, T] of direction, the last of the camera, and where they are wanted."""
    num_frames = known.shape[1]
    errors, wanted = np.full((len(known) + 1, num_frames), np.nan), np.zeros((len(known) + 1, num_frames), bool)
    center, scale = toyworld.camera_view(program, num_frames)
    for k, shape in enumerate(program.shapes):
        paths = true.center[k : k + 1], seen.center[k : k + 1]
        if shape.event.startswith("moves"):
            true_change, seen_change = (_wrap(_change(path)) for path in paths)
            part = (seen_change * true_change.conj()).real / np.maximum(np.abs(true_change), 1e-9) ** 2
            enough = np.abs(true_change) * size >= MIN_MOVE
        elif shape.event.startswith("circles"):
            hub = _wrap(complex(shape.x, shape.y) - (center[:, 0] + 1j * center[:, 1])) * scale + 0.5 * (1 + 1j)
            true_change, seen_change = (np.angle(np.exp(1j * _change(np.angle(_wrap(path - hub))))) for path in paths)
            off = np.abs(np.abs(_wrap(paths[1] - hub)) - ORBIT * scale) > ORBIT / 2 * scale
            part = np.where(off, np.nan, seen_change / np.where(true_change == 0, 1, true_change))
            enough = np.abs(true_change) >= MIN_TURN
        else:
            continue
        errors[k], wanted[k] = _against(part[0], signs[k]), (_whole(known[k : k + 1]) & enough)[0]
    if program.camera and num_frames > 2 * REACH:
        true_flow, true_slope, pixels = _sums(true.flow)
        seen_flow, seen_slope, _ = _sums(seen.flow)
        speed = true_flow / np.maximum(true_slope, 1e-9)
        # A background that lost its texture shows no camera: it counts as one that stands still.
        part = seen_flow / np.maximum(np.maximum(seen_slope, true_slope / 4), 1e-9) / np.where(speed == 0, 1, speed)
        errors[-1, REACH:-REACH] = _against(part, signs[-1])
        wanted[-1, REACH:-REACH] = (true_slope * size**2 > MIN_SLOPE**2 * pixels) & (speed != 0)
    return errors, wanted


def _orders(
    program: Program, true: View, seen: View, known: np.ndarray, signs: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Errors [K, T] of the order of states, and where they are wanted."""
    errors, wanted = np.full(known.shape, np.nan), np.zeros(known.shape, bool)
    for k, shape in enumerate(program.shapes):
        verb = shape.event.partition(" ")[0]
        if verb not in MIN_CHANGE:
            continue
        true_change, seen_change = (_change(_quantity(program, shape, view, k)[None]) for view in (true, seen))
        enough = np.abs(true_change) >= MIN_CHANGE[verb]
        part = seen_change / np.where(true_change == 0, 1, true_change)
        errors[k], wanted[k] = _against(part[0], signs[k]), (_whole(known[k : k + 1]) & enough)[0]
    return errors, wanted


def _quantity(program: Program, shape: Shape, view: View, k: int) -> np.ndarray:
    """What an event changes, [T]."""
    verb, _, rest = shape.event.partition(" ")
    if verb in ("grows", "shrinks"):
        return np.sqrt(view.area[k])
    start = np.array(COLORS[shape.color] if verb == "turns" else GROUNDS[program.ground])
    way = np.array(COLORS[rest] if verb == "turns" else COLORS[shape.color]) - start
    return ((view.color[k] - start) * way).sum(-1) / max(np.linalg.norm(way), 1e-9)


def _against(part: np.ndarray, sign: int) -> np.ndarray:
    """Error of the part of a true change that is seen; `sign` 1: the caption says so, -1: the reverse, 0: neither."""
    return np.clip(0.5 - sign * part, 0, 1) if sign else np.ones_like(part)


def _wrap(gap: np.ndarray) -> np.ndarray:
    """The shortest way round the torus: complex gaps with both parts in -0.5..0.5."""
    return (gap.real + 0.5) % 1.0 - 0.5 + 1j * ((gap.imag + 0.5) % 1.0 - 0.5)


# ---------------------------------------------------------------- what is true, and what is said


def _known(program: Program, sights: sight.Sights) -> np.ndarray:
    """Where the instrument does what it should on the true picture, and frames can be asked for the same: [K, T]."""
    colors = sight.shown_colors(program, sights.visible.shape[1])
    contrast = np.linalg.norm(colors - np.array(GROUNDS[program.ground]), axis=-1)
    miss = np.abs(np.log(sights.true.area / np.maximum(sights.visible, 1e-9)))
    known = (sights.visible >= MIN_PIXELS) & (contrast >= MIN_CONTRAST) & (miss < np.log(TRUTH_WITHIN))
    for k, other in itertools.permutations(range(len(colors)), 2):
        known[k] &= sight.square_distance(colors[k].T, *colors[other][[0, -1]]) >= MIN_APART**2
    return known


def _signs(program: Program, description: Description | None) -> list[int]:
    """Of every shape and of the camera: 1 where the description says what is shown, -1 its reverse, 0 neither."""
    if description is None:
        return [1] * (len(program.shapes) + 1)
    way = program.direction * (-1 if description.marked else 1)
    signs = []
    for k, shape in enumerate(program.shapes):
        forward = shape.color, shape.shape, shape.event
        reverse = toyworld.reverse_description(Description((forward,), program.texture, program.ground))
        backward = None if reverse.marked else reverse.subjects[0]
        said = description.subjects[k] if k < len(description.subjects) else None
        signs.append(_sign(said, forward, backward, way))
    return [*signs, _sign(description.camera, program.camera, toyworld.CAMERAS.get(program.camera, ""), way)]


def _sign(said: object, forward: object, backward: object, way: int) -> int:
    if said == forward:
        return 1 if forward == backward else way  # words that are true both ways say nothing of time
    return -way if said == backward else 0

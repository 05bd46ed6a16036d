"""What is to be seen in a clip of the toy world: where each shape is, how large, of what colour; how many there are.

An instrument, which the oracle turns on the true picture and on a model's frames alike. Notable: a pixel belongs to the
nearest colour, and to the shape that has that colour anywhere in the clip (one that turns or fades has a way of them),
unless the background is nearer. Rims count by their share, in the colour that the inside shows, so that areas and
centres are good to a part of a pixel, whatever became of the colour. What is seen in a frame depends on no other frame,
nor on threads: there are no matrix products.

Legend: T frames, K shapes, S x S pixels; planes [3, T, S, S] are RGB in 0..1.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
from scipy import ndimage, sparse

from model import toyworld
from model.toyworld import COLORS, GROUNDS, Program

PRESENT_BELOW = 0.25  # largest RGB distance at which a pixel still counts as a colour
MIN_CONTRAST = 0.2  # colours nearer to each other than this are not told apart
PATCH = (1 / 256, 1 / 128, 1 / 64)  # of the picture: a patch that may be an object, is one, and is missed if it is not
BLOCK = 1 << 18  # pixels held as floats at once
_PLANE = np.zeros((3, 3, 3), int)  # neighbours within a frame
_PLANE[1] = ndimage.generate_binary_structure(2, 1)


@dataclass(frozen=True)
class View:
    """What the instrument sees. NaN where it finds no such shape."""

    area: np.ndarray  # [K, T] pixels, with shares of those at the rim
    center: np.ndarray  # [K, T] complex: x + iy in widths, 0..1
    color: np.ndarray  # [K, T, 3] of the inside
    counts: np.ndarray  # [3, T] patches of any colour of the world that are at least PATCH large
    flow: np.ndarray  # [3, T - 1] of the background along the camera's way: sums of change * slope and slope², pixels


@dataclass(frozen=True)
class Sights:
    """Views of the true picture and of the frames, with what is known of the true one without looking."""

    true: View
    seen: View
    visible: np.ndarray  # [K, T] pixels of a shape that nothing hides, however transparent it is itself
    background: np.ndarray  # [T] mean absolute RGB error where no shape should be; NaN where they are everywhere


def compare(frames: np.ndarray, program: Program) -> Sights:
    """Look at frames uint8 [T, S, S, 3] and at the true picture of a program's clip."""
    num_frames, size = frames.shape[:2]
    ends = shown_colors(program, num_frames)[:, [0, -1]]  # colours change one way, so that these hold all between
    step = max(1, BLOCK // size**2)
    parts = []
    for t in range(0, num_frames, step):
        later = replace(program, start=program.start + program.direction * t)
        parts.append(_block(frames[t : t + step + 1], later, ends, min(step, num_frames - t)))
    true, seen, visible, background = zip(*parts, strict=True)
    return Sights(_join(true), _join(seen), np.concatenate(visible, 1), np.concatenate(background))


def shown_colors(program: Program, num_frames: int) -> np.ndarray:
    """Colour [K, T, 3] that every shape shows, over the mean background where it is transparent."""
    ground = np.array(GROUNDS[program.ground])
    states = toyworld.states(program, num_frames)
    return np.stack([ground + state.alpha[:, None] * (state.color - ground) for state in states])


def _block(
    frames: np.ndarray, program: Program, ends: np.ndarray, count: int
) -> tuple[View, View, np.ndarray, np.ndarray]:
    """Views of the true picture and of frames [count or count + 1, S, S, 3], true visible areas, background error."""
    ground, cover = layers(program, len(frames), frames.shape[1])
    true, shown, taken = ground, np.zeros_like(cover), np.zeros(cover.shape[1:], bool)
    for k, state in enumerate(toyworld.states(program, len(frames))):
        veil = cover[k] * state.alpha.astype(np.float32)[:, None, None]
        shown *= 1 - veil
        shown[k] = cover[k]
        taken |= veil >= 0.02
        true = true + veil * (state.color.T.astype(np.float32)[:, :, None, None] - true)
    planes = np.ascontiguousarray(np.moveaxis(frames, -1, 0)).astype(np.float32) / np.float32(255)
    free = ~taken
    error = np.abs(planes - ground).sum(0) / 3
    pixels = free.sum((1, 2))
    background = np.where(pixels > 0, (error * free).sum((1, 2)) / np.maximum(pixels, 1), np.nan)
    views = [_cut(look(p, ground, ends, program, taken), count) for p in (true, planes)]
    return views[0], views[1], shown.sum((2, 3))[:, :count], background[:count]


def _cut(view: View, count: int) -> View:
    return View(view.area[:, :count], view.center[:, :count], view.color[:, :count], view.counts[:, :count], view.flow)


def _join(views: tuple[View, ...]) -> View:
    return View(*(np.concatenate([getattr(view, field.name) for view in views], 1) for field in fields(View)))


def layers(program: Program, num_frames: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Background planes [3, T, S, S] and coverage [K, T, S, S] if nothing were in front or transparent; float32.

    As toyworld.render_layers to within a few thousandths, at a tenth of its cost: the smooth background is not
    supersampled, and what depends on one coordinate is computed along one.
    """
    center, scale = toyworld.camera_view(program, num_frames)
    moving = slice(None) if program.camera else slice(1)
    u, v = (_axis(size, center[moving, i], scale[moving]) for i in range(2))
    ground = np.moveaxis(toyworld._ground(program, u[:, None, :], v[:, :, None]), -1, 0)
    ground = np.ascontiguousarray(np.broadcast_to(ground, (3, num_frames, size, size)), np.float32)
    u, v = (_axis(2 * size, center[:, i], scale) for i in range(2))
    cover = np.empty((len(program.shapes), num_frames, size, size), np.float32)
    for k, (shape, state) in enumerate(zip(program.shapes, toyworld.states(program, num_frames), strict=True)):
        dx, dy = (((w - state.center[:, i, None] + 0.5) % 1.0 - 0.5).astype(np.float32) for i, w in enumerate((u, v)))
        radius, angle, sharp = (w.astype(np.float32)[:, None, None] for w in (state.radius, state.angle, size * scale))
        away = toyworld._distance(shape.shape, dx[:, None, :], dy[:, :, None], radius, angle)
        fine = np.clip(np.float32(0.5) - away * sharp, 0, 1)
        rows = fine[:, ::2] + fine[:, 1::2]
        cover[k] = (rows[:, :, ::2] + rows[:, :, 1::2]) / 4
    return ground, cover


def _axis(size: int, center: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return center[:, None] + ((np.arange(size) + 0.5) / size - 0.5) / scale[:, None]


def look(planes: np.ndarray, ground: np.ndarray, ends: np.ndarray, program: Program, taken: np.ndarray) -> View:
    """What is to be seen in planes [3, T, S, S]; `ends` [K, 2, 3] are the first and last colour of every shape."""
    num_shapes, (_, num_frames, size, _) = len(ends), planes.shape
    torus = not program.camera.startswith("zooms")
    kind, is_object = _classify(planes, ground, ends, program)
    area, center = np.full((num_shapes, num_frames), np.nan), np.full((num_shapes, num_frames), np.nan, complex)
    color = np.full((num_shapes, num_frames, 3), np.nan)
    counts = np.zeros((3, num_frames), int)
    turns = np.exp(2j * np.pi * (np.arange(size) + 0.5) / size)
    for k in np.flatnonzero(np.bincount(kind[is_object], minlength=num_shapes)):
        own_kind = is_object & (kind == k)
        thick = _thick(own_kind)
        counts += _patches(thick, torus)
        if k >= num_shapes:
            continue
        found = own_kind & (_around(thick, torus) > 0)  # with its corners
        pixels = found.sum((1, 2))
        around = _around(found, torus)
        inside = around == 9
        inside = np.where(inside.any((1, 2), keepdims=True), inside, found)
        own = (planes * inside).sum((2, 3)) / np.maximum(inside.sum((1, 2)), 1)
        away = own[:, :, None, None] - ground
        share = ((planes - ground) * away).sum(0) / np.maximum((away * away).sum(0), 1e-6)
        share = np.clip(share, 0, 1) * ((around > 0) & (found | ~is_object))
        there = pixels > 0
        total = share.sum((1, 2))
        area[k, there] = total[there]
        color[k, there] = own.T[there]
        across, down = ((share.sum(axis) * turns).sum(-1) for axis in (1, 2))
        place = (np.angle(across) + 1j * np.angle(down)) / (2 * np.pi)
        center[k, there] = (place.real % 1.0 + 1j * (place.imag % 1.0))[there]
    hidden = taken | (_around(is_object, torus) > 0)
    return View(area, center, color, counts, _flow(planes, hidden, program))


def _classify(
    planes: np.ndarray, ground: np.ndarray, ends: np.ndarray, program: Program
) -> tuple[np.ndarray, np.ndarray]:
    """Nearest colour [T, S, S] (a shape's number, or K and more for the others), and whether it is one at all."""
    mean = np.array(GROUNDS[program.ground])
    best = square_distance(planes, ends[0, 0], ends[0, 1])
    kind = np.zeros(best.shape, np.int8)
    world = np.array(list(COLORS.values()))
    apart = np.min([square_distance(world.T, *pair) for pair in ends], axis=0) > MIN_CONTRAST**2
    for i, (start, end) in enumerate([*ends[1:], *((color, color) for color in world[apart])], 1):
        away = square_distance(planes, start, end)
        nearer = away < best
        np.copyto(kind, np.int8(i), where=nearer)
        best = np.minimum(best, away)
    off = ((planes - ground) ** 2).sum(0)
    limit = np.minimum(np.minimum(off, square_distance(planes, mean, mean)), np.float32(PRESENT_BELOW**2))
    return kind, (best < limit) & (off > (MIN_CONTRAST / 2) ** 2)


def square_distance(planes: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Squared RGB distance [...] of colours [3, ...] to the way from one to another."""
    away = [plane - np.float32(x) for plane, x in zip(planes, start, strict=True)]
    way = [np.float32(x) for x in end - start]
    length = sum(x * x for x in way)
    if length > 1e-8:
        part = sum(a * x for a, x in zip(away, way, strict=True)) / length
        part = np.clip(part, 0, 1)
        away = [a - part * x for a, x in zip(away, way, strict=True)]
    return away[0] * away[0] + away[1] * away[1] + away[2] * away[2]


def _around(mask: np.ndarray, torus: bool) -> np.ndarray:
    """How many of the 3x3 pixels around each are set: uint8 [T, S, S]."""
    total = mask.astype(np.uint8)
    for axis in (1, 2):
        line = np.moveaxis(total, axis, 0)
        new = line.copy()
        new[1:] += line[:-1]
        new[:-1] += line[1:]
        if torus:
            new[0] += line[-1]
            new[-1] += line[0]
        total = np.moveaxis(new, 0, axis)
    return total


def _thick(mask: np.ndarray) -> np.ndarray:
    """What is two pixels wide and high everywhere: rims and stray pixels, which may have any colour, are not."""
    core = mask[:, :-1, :-1] & mask[:, :-1, 1:] & mask[:, 1:, :-1] & mask[:, 1:, 1:]
    thick = np.zeros_like(mask)
    for rows in (slice(-1), slice(1, None)):
        for columns in (slice(-1), slice(1, None)):
            thick[:, rows, columns] |= core
    return thick


def _patches(mask: np.ndarray, torus: bool) -> np.ndarray:
    """Number [3, T] of connected patches of a mask [T, S, S] that are at least PATCH large."""
    labels, count = ndimage.label(mask, _PLANE)
    if not count:
        return np.zeros((3, len(mask)), int)
    root, sizes = np.arange(count + 1), np.bincount(labels.ravel())
    if torus:
        edges = (labels[:, 0], labels[:, -1]), (labels[:, :, 0], labels[:, :, -1])
        one, other = (np.concatenate([edge[i].ravel() for edge in edges]) for i in range(2))
        joined = (one > 0) & (other > 0)
        if joined.any():
            links = sparse.coo_array((joined[joined], (one[joined], other[joined])), shape=(count + 1, count + 1))
            root = sparse.csgraph.connected_components(links, directed=False)[1]
    frame = np.zeros(count + 1, int)
    frame[labels.ravel()] = np.repeat(np.arange(len(mask)), mask[0].size)
    whole = np.bincount(root[1:], sizes[1:], count + 1)[root]  # of the patch that a label is part of
    first = np.zeros(count + 1, bool)
    first[1 + np.unique(root[1:], return_index=True)[1]] = True
    return np.stack([np.bincount(frame[first & (whole >= x * mask[0].size)], minlength=len(mask)) for x in PATCH])


def _flow(planes: np.ndarray, hidden: np.ndarray, program: Program) -> np.ndarray:
    """Sums [3, T - 1] for the least-squares speed of the background along the camera's way."""
    size, pairs = planes.shape[-1], planes.shape[1] - 1
    if not program.camera or pairs < 1:
        return np.zeros((3, pairs))
    luma = ndimage.uniform_filter(planes.sum(0) / 3, (1, 3, 3), mode="nearest")  # or noise would slow it down
    change, mean = luma[1:] - luma[:-1], (luma[1:] + luma[:-1]) / 2
    across = (mean[:, 1:-1, 2:] - mean[:, 1:-1, :-2]) / 2
    down = (mean[:, 2:, 1:-1] - mean[:, :-2, 1:-1]) / 2
    verb, _, rest = program.camera.partition(" ")
    if verb == "pans":
        x, y = toyworld.STEP[rest]
        slope = across * np.float32(x) + down * np.float32(y)
    else:
        arm = ((np.arange(1, size - 1) + 0.5) / (size / 2) - 1).astype(np.float32)
        slope = across * arm + down * arm[:, None]
    free = ~(hidden[1:] | hidden[:-1])[:, 1:-1, 1:-1]
    slope = slope * free
    sums = (change[:, 1:-1, 1:-1] * slope).sum((1, 2)), (slope * slope).sum((1, 2)), free.sum((1, 2))
    return np.stack(sums).astype(np.float64)

"""Exact measures in the toy world: what a program says should be there, against the frames that are.

Four numbers a frame, none of which an over-saturated, blurred or frozen picture can please: are the shapes still
there, in their colour, where they should be, before the background they had. A model cannot know a clip's exact speeds
from its first frames, so position errors of real models grow slowly; that is what a control is for.

Legend: T frames, K shapes.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from model.toyworld import Program, render_layers, states

MEASURES = ("object_present", "color_error", "position_error", "background_error")
PRESENT_BELOW = 0.25  # largest RGB distance at which a pixel still counts as a shape's colour
MIN_CONTRAST = 0.2  # a shape that comes closer than this to its background (fading, turning) is not looked for
MIN_SHARE = 0.25  # a shape is there while this share of its true area shows its colour


def measure(frames: np.ndarray, program: Program) -> dict[str, np.ndarray]:
    """Curves [T] of float32 for frames uint8 [T,H,W,3] of a program's clip; NaN where there is nothing to measure.

    object_present    share of the shapes that show their colour, anywhere, on a quarter of their area; 1 is best
    color_error       RGB distance (0..1.73) of a shape's true colour to the median of its pixels found
    position_error    distance of a shape's centre to the true one, in widths, round the torus (0..0.71); both are
                      centres of what can be seen of the shape beside the picture's edge and the shape in front
    background_error  mean absolute RGB error (0..1) against the true background where no shape should be
    """
    num_frames, size = frames.shape[0], frames.shape[1]
    _, ground, cover = render_layers(program, num_frames, size)
    seen = frames.astype(np.float64) / 255
    free = cover.max(-1) < 0.02
    error = np.abs(seen - ground).mean(-1)
    background = (error * free).sum((1, 2)) / np.maximum(free.sum((1, 2)), 1)
    shapes = [
        _follow(seen, program, k, cover[..., k] * (cover[..., k + 1 :] < 0.1).all(-1), ground.mean((1, 2)))
        for k in range(len(program.shapes))
    ]
    result = {"background_error": background.astype(np.float32)}
    for index, name in enumerate(("object_present", "color_error", "position_error")):
        stacked = np.stack([shape[index] for shape in shapes])  # [K, T]
        known = ~np.isnan(stacked)
        total = np.where(known, stacked, 0).sum(0)
        result[name] = np.where(known.any(0), total / np.maximum(known.sum(0), 1), np.nan).astype(np.float32)
    return {name: result[name] for name in MEASURES}


def _follow(
    seen: np.ndarray, program: Program, k: int, cover: np.ndarray, ground: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(present, colour error, position error) of shape k, each [T]; `cover` [T,H,W] is of its visible part."""
    num_frames, size = seen.shape[0], seen.shape[1]
    state = states(program, num_frames)[k]
    axis = (np.arange(size) + 0.5) / size
    present, color, position = (np.full(num_frames, np.nan) for _ in range(3))
    for t in range(num_frames):
        area = cover[t].sum() / max(state.alpha[t], 1e-6)
        target = ground[t] + state.alpha[t] * (state.color[t] - ground[t])
        contrast = np.linalg.norm(target - ground[t])
        if contrast < MIN_CONTRAST or area < 6:
            continue
        found = np.linalg.norm(seen[t] - target, axis=-1) < min(PRESENT_BELOW, contrast / 2)
        labels, count = ndimage.label(found)
        # Shapes may wrap round the edge: every patch counts, but a few stray pixels do not.
        sizes = ndimage.sum_labels(found, labels, np.arange(1, count + 1)) if count else np.zeros(0)
        found = np.isin(labels, 1 + np.flatnonzero(sizes >= 4))
        present[t] = float(found.sum() >= MIN_SHARE * area)
        if not present[t]:
            continue
        color[t] = np.linalg.norm(np.median(seen[t][found], axis=0) - target)
        offset = (_center(found.astype(np.float64), axis) - _center(cover[t], axis) + 0.5) % 1.0 - 0.5
        position[t] = np.linalg.norm(offset)
    return present, color, position


def _center(weights: np.ndarray, axis: np.ndarray) -> np.ndarray:
    """Mean (x, y) of weights [H,W] at the positions `axis`, 0..1, on the torus."""
    turns = np.exp(2j * np.pi * axis)
    return np.angle([(weights.sum(0) * turns).sum(), (weights.sum(1) * turns).sum()]) / (2 * np.pi) % 1.0

"""A procedural video world with a caption grammar: the project's built-in data set and its exact oracle.

A `Program` is everything there is to know of a clip: one or two shapes with one event each, a textured background, a
camera and a clock. From it follow the frames (`render`), the true state of every shape in every frame (`states`), the
caption (`caption`), and the program of the same clip played backwards (`reverse`), whose caption is the gold answer for
a prompt rewriter. The world is a torus and its events are slow (`HORIZON` frames from start to end), so that a clip of
any length is well defined and a short clip is a window of a longer one.

Coordinates are in widths of the picture, y downwards, colours are RGB in 0..1, time is in frames.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace

import numpy as np

HORIZON = 64.0  # frames in which a shape grows, a colour turns or a zoom completes
FADE_FRAMES = 48.0
MARKER = "A reversed video of "

COLORS = {
    "red": (0.82, 0.22, 0.20),
    "green": (0.22, 0.66, 0.30),
    "blue": (0.22, 0.36, 0.82),
    "yellow": (0.88, 0.80, 0.24),
    "purple": (0.58, 0.26, 0.70),
    "orange": (0.90, 0.52, 0.18),
    "cyan": (0.26, 0.74, 0.78),
    "white": (0.93, 0.93, 0.93),
}
GROUNDS = {
    "grey": (0.46, 0.46, 0.47),
    "tan": (0.58, 0.51, 0.42),
    "slate": (0.34, 0.39, 0.46),
    "olive": (0.42, 0.44, 0.33),
    "mauve": (0.48, 0.40, 0.46),
}
SHAPES = ("circle", "square", "triangle")
TEXTURES = ("striped", "checkered", "cloudy", "plain")

# An event and its time reversal, as (phrase forwards, phrase backwards).
DIRECTIONS = {"left": "right", "right": "left", "up": "down", "down": "up"}
EVENTS = {
    **{f"moves {a}": f"moves {b}" for a, b in DIRECTIONS.items()},
    "circles clockwise": "circles counterclockwise",
    "circles counterclockwise": "circles clockwise",
    "grows": "shrinks",
    "shrinks": "grows",
    "spins in place": "spins in place",
    "stays still": "stays still",
}
IRREVERSIBLE = ("fades out",)
CAMERAS = {
    **{f"pans {a}": f"pans {b}" for a, b in DIRECTIONS.items()},
    "zooms in": "zooms out",
    "zooms out": "zooms in",
}
STEP = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}


@dataclass(frozen=True)
class Shape:
    """One shape and what happens to it. `event` is its phrase in the grammar, or `turns COLOR`."""

    shape: str
    color: str
    event: str
    x: float
    y: float
    radius: float
    speed: float  # widths, or turns, per frame
    angle: float = 0.0


@dataclass(frozen=True)
class Program:
    """A clip. At frame t its clock shows `start + direction * t`; `direction` is -1 when it plays backwards."""

    shapes: tuple[Shape, ...]
    texture: str
    ground: str
    texture_seed: int
    camera: str = ""
    camera_speed: float = 0.0
    start: float = 0.0
    direction: int = 1


@dataclass(frozen=True)
class State:
    """True state of one shape over time: `center` [T,2], `radius` [T], `color` [T,3], `alpha` [T], `angle` [T]."""

    center: np.ndarray
    radius: np.ndarray
    color: np.ndarray
    alpha: np.ndarray
    angle: np.ndarray


def sample_program(rng: np.random.Generator, start: float = 0.0) -> Program:
    """Draw a program; its clock begins at `start`."""
    count = 1 if rng.random() < 0.65 else 2
    colors = rng.permutation(list(COLORS))
    shapes = []
    for i in range(count):
        kind = rng.random()
        if kind < 0.14:
            event = f"turns {colors[count + i]}"
        elif kind < 0.22:
            event = IRREVERSIBLE[0]
        else:
            names = list(EVENTS)
            weights = np.array([0.6 if name in ("stays still", "spins in place") else 1.0 for name in names])
            event = str(rng.choice(names, p=weights / weights.sum()))
        circles = event.startswith("circles")
        shapes.append(
            Shape(
                shape=str(rng.choice(SHAPES if event != "spins in place" else SHAPES[1:])),
                color=str(colors[i]),
                event=str(event),
                x=round(float(rng.uniform(0.3, 0.7) if count == 1 else rng.uniform(0.15, 0.35) + 0.5 * i), 4),
                y=round(float(rng.uniform(0.3, 0.7)), 4),
                radius=round(float(rng.uniform(0.15, 0.21) if count == 1 else rng.uniform(0.12, 0.16)), 4),
                speed=round(float(rng.uniform(0.014, 0.024) if not circles else rng.uniform(0.018, 0.030)), 5),
                angle=round(float(rng.uniform(0, 2 * np.pi)), 4) * int(rng.choice([-1, 1])),
            )
        )
    camera = str(rng.choice(list(CAMERAS))) if rng.random() < 0.3 else ""
    return Program(
        shapes=tuple(shapes),
        texture=str(rng.choice(TEXTURES, p=[0.32, 0.28, 0.28, 0.12])),
        ground=str(rng.choice(list(GROUNDS))),
        texture_seed=int(rng.integers(1 << 30)),
        camera=camera,
        camera_speed=round(float(rng.uniform(0.008, 0.014)), 5) if camera else 0.0,
        start=float(start),
    )


def reverse(program: Program, num_frames: int) -> Program:
    """The program whose clip of `num_frames` is this one's played backwards, frame for frame."""
    return replace(program, start=program.start + program.direction * (num_frames - 1), direction=-program.direction)


def to_json(program: Program) -> str:
    """One line of JSON; `from_json` gives the program back."""
    return json.dumps(asdict(program), sort_keys=True)


def from_json(text: str) -> Program:
    """Inverse of `to_json`. Raises ValueError on anything that is not a program of this world."""
    try:
        data = json.loads(text)
        shapes = tuple(Shape(**shape) for shape in data.pop("shapes"))
        program = Program(shapes=shapes, **data)
        _check(program)
    except (TypeError, KeyError, AttributeError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"not a toy world program: {error}") from error
    return program


def _check(program: Program) -> None:
    """Raise ValueError or TypeError where a word is not in the grammar or a number is not one."""
    if not 1 <= len(program.shapes) <= 2:
        raise ValueError(f"{len(program.shapes)} shapes; expected 1 or 2")
    events = [*EVENTS, *IRREVERSIBLE, *(f"turns {color}" for color in COLORS)]
    words: list[tuple[str, object, Collection[object]]] = [
        ("texture", program.texture, TEXTURES),
        ("ground", program.ground, list(GROUNDS)),
        ("camera", program.camera, ["", *CAMERAS]),
        ("direction", program.direction, [1, -1]),
    ]
    numbers = [program.start, program.camera_speed]
    for shape in program.shapes:
        words += [("shape", shape.shape, SHAPES), ("color", shape.color, list(COLORS)), ("event", shape.event, events)]
        numbers += [shape.x, shape.y, shape.radius, shape.speed, shape.angle]
    for name, value, allowed in words:
        if value not in allowed:
            raise ValueError(f"{name} {value!r}; expected one of {', '.join(map(str, allowed))}")
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"numbers {numbers}; expected finite ones")
    if not isinstance(program.texture_seed, int) or program.texture_seed < 0:
        raise ValueError(f"texture_seed {program.texture_seed!r}; expected a whole number from 0")


# ---------------------------------------------------------------- frames


def clock(program: Program, num_frames: int) -> np.ndarray:
    """World time of every frame, [T]."""
    return program.start + program.direction * np.arange(num_frames, dtype=np.float64)


def states(program: Program, num_frames: int) -> list[State]:
    """Exact state of every shape in every frame, in world coordinates (before the camera)."""
    time = clock(program, num_frames)
    return [_state(shape, time) for shape in program.shapes]


def _state(shape: Shape, time: np.ndarray) -> State:
    ones = np.ones_like(time)
    part = np.clip(time / HORIZON, 0.0, 1.0)
    x, y, radius = shape.x * ones, shape.y * ones, shape.radius * ones
    alpha, angle = ones, shape.angle * ones
    color = np.outer(ones, COLORS[shape.color])
    verb, _, rest = shape.event.partition(" ")
    if verb == "moves":
        dx, dy = STEP[rest]
        x, y = x + dx * shape.speed * time, y + dy * shape.speed * time
    elif verb == "circles":
        sense = 1.0 if rest == "clockwise" else -1.0
        turn = sense * 2 * np.pi * shape.speed * time + shape.angle
        x, y = x + 0.18 * np.cos(turn), y + 0.18 * np.sin(turn)
        angle = 0.0 * ones
    elif verb == "grows":
        radius = shape.radius * (0.65 + 1.0 * part)
    elif verb == "shrinks":
        radius = shape.radius * (1.65 - 1.0 * part)
    elif verb == "turns":
        color = (1 - part)[:, None] * color + part[:, None] * np.array(COLORS[rest])
    elif verb == "spins":
        angle = shape.angle + np.sign(shape.angle or 1.0) * 2 * np.pi * shape.speed * time
    elif verb == "fades":
        alpha = 1.0 - np.clip(time / FADE_FRAMES, 0.0, 1.0)
    return State(np.stack([x, y], -1) % 1.0, radius, color, alpha, angle)


def camera_view(program: Program, num_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Centre of the picture in the world [T,2] and magnification [T]."""
    time = clock(program, num_frames)
    center, scale = np.full((num_frames, 2), 0.5), np.ones(num_frames)
    verb, _, rest = program.camera.partition(" ")
    if verb == "pans":
        center = center + np.outer(program.camera_speed * time, STEP[rest])
    elif verb == "zooms":
        part = np.clip(time / HORIZON, 0.0, 1.0)
        scale = 1.0 + 0.6 * (part if rest == "in" else 1.0 - part)
    return center, scale


def render(program: Program, num_frames: int, size: int = 32) -> np.ndarray:
    """Frames uint8 [T, size, size, 3]; a pure function of its arguments."""
    layers = render_layers(program, num_frames, size)
    return np.round(255 * np.clip(layers[0], 0, 1)).astype(np.uint8)


def render_layers(program: Program, num_frames: int, size: int = 32) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Float picture [T,H,W,3], background alone [T,H,W,3] and coverage of every shape [T,H,W,K], all in 0..1."""
    fine = 2 * size  # supersampled, then averaged: soft edges
    axis = (np.arange(fine) + 0.5) / fine - 0.5
    center, scale = camera_view(program, num_frames)
    u = center[:, None, None, 0] + axis[None, None, :] / scale[:, None, None] + 0 * axis[None, :, None]
    v = center[:, None, None, 1] + axis[None, :, None] / scale[:, None, None] + 0 * axis[None, None, :]
    ground = _ground(program, u, v)
    picture, covers = ground, []
    for shape, state in zip(program.shapes, states(program, num_frames), strict=True):
        dx = (u - state.center[:, None, None, 0] + 0.5) % 1.0 - 0.5
        dy = (v - state.center[:, None, None, 1] + 0.5) % 1.0 - 0.5
        distance = _distance(shape.shape, dx, dy, state.radius[:, None, None], state.angle[:, None, None])
        edge = 0.5 / size / scale[:, None, None]
        cover = np.clip(0.5 - distance / (2 * edge), 0, 1) * state.alpha[:, None, None]
        picture = picture + cover[..., None] * (state.color[:, None, None, :] - picture)
        covers.append(cover)
    return _shrink(picture), _shrink(ground), _shrink(np.stack(covers, -1))


def _shrink(x: np.ndarray) -> np.ndarray:
    t, h, w, c = x.shape
    return x.reshape(t, h // 2, 2, w // 2, 2, c).mean((2, 4))


def _ground(program: Program, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Periodic texture around the ground colour; whole numbers of waves, so that the torus has no seam."""
    rng = np.random.default_rng(program.texture_seed)
    kx, ky = int(rng.integers(1, 3)), int(rng.integers(1, 3)) * int(rng.choice([-1, 1]))
    phase = rng.uniform(0, 2 * np.pi, 4)
    amount = rng.uniform(0.07, 0.12)
    two_pi = 2 * np.pi
    if program.texture == "striped":
        wave = np.sin(two_pi * (kx * u + ky * v) + phase[0])
    elif program.texture == "checkered":
        wave = np.sin(two_pi * (kx + 1) * u + phase[0]) * np.sin(two_pi * (abs(ky) + 1) * v + phase[1]) * 1.4
    elif program.texture == "cloudy":
        wave = (
            np.sin(two_pi * u + phase[0]) * np.cos(two_pi * v + phase[1])
            + 0.7 * np.sin(two_pi * (2 * u + v) + phase[2])
            + 0.5 * np.cos(two_pi * (u - 2 * v) + phase[3])
        ) * 0.7
    else:
        wave = np.zeros_like(u)
    tint = 1.0 + 0.25 * rng.uniform(-1, 1, 3)
    return np.array(GROUNDS[program.ground]) + amount * wave[..., None] * tint


def _distance(shape: str, dx: np.ndarray, dy: np.ndarray, radius: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Signed distance to the outline, negative inside."""
    if shape == "circle":
        return np.hypot(dx, dy) - radius
    cos, sin = np.cos(angle), np.sin(angle)
    px, py = cos * dx + sin * dy, -sin * dx + cos * dy
    if shape == "square":
        return np.maximum(np.abs(px), np.abs(py)) - 0.85 * radius
    sides = [np.cos(a) * px + np.sin(a) * py for a in (np.pi / 2, np.pi / 2 + 2 * np.pi / 3, np.pi / 2 - 2 * np.pi / 3)]
    return np.maximum.reduce(sides) - 0.62 * radius


# ---------------------------------------------------------------- language


@dataclass(frozen=True)
class Description:
    """What a caption says. `subjects` are (colour, shape, event); `marked` means the reversed-video marker form."""

    subjects: tuple[tuple[str, str, str], ...]
    texture: str
    ground: str
    camera: str = ""
    marked: bool = False


def describe(program: Program) -> Description:
    """The description that is true of the program's clip, also when it plays backwards."""
    forward = Description(
        tuple((s.color, s.shape, s.event) for s in program.shapes), program.texture, program.ground, program.camera
    )
    return forward if program.direction > 0 else reverse_description(forward)


def reversal_class(description: Description) -> str:
    """Retro-Actions classes (arXiv:1909.09422): `irreversible`, `equivariant` (some word flips) or `invariant`."""
    if any(event in IRREVERSIBLE for _, _, event in description.subjects):
        return "irreversible"
    return "equivariant" if reverse_description(description) != description else "invariant"


def reverse_description(description: Description) -> Description:
    """What is true of the clip played backwards; its own inverse. The marker form stands in where no words exist."""
    if description.marked:
        return replace(description, marked=False)
    if any(event in IRREVERSIBLE for _, _, event in description.subjects):
        return replace(description, marked=True)
    return replace(
        description,
        subjects=tuple(_reverse_subject(*subject) for subject in description.subjects),
        camera=CAMERAS[description.camera] if description.camera else "",
    )


def _reverse_subject(color: str, shape: str, event: str) -> tuple[str, str, str]:
    if event.startswith("turns "):
        return event.removeprefix("turns "), shape, f"turns {color}"
    return color, shape, EVENTS[event]


def to_text(description: Description) -> str:
    """The caption of a description."""
    subjects = " and ".join(
        f"{_article(color)} {color} {shape} {event}" for color, shape, event in description.subjects
    )
    ground = description.ground if description.texture == "plain" else f"{description.texture} {description.ground}"
    article = _article(ground)
    camera = f", the camera {description.camera}" if description.camera else ""
    return f"{MARKER if description.marked else ''}{subjects} over {article} {ground} background{camera}"


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _pattern() -> re.Pattern[str]:
    color, shape = "|".join(COLORS), "|".join(SHAPES)
    event = "|".join([*EVENTS, *IRREVERSIBLE, *(f"turns {c}" for c in COLORS)])
    subject = rf"an? (?:{color}) (?:{shape}) (?:{event})"
    texture, ground, camera = "|".join(TEXTURES), "|".join(GROUNDS), "|".join(CAMERAS)
    return re.compile(
        rf"(?P<marker>a reversed video of )?(?P<subjects>{subject}(?: and {subject})?) over an? "
        rf"(?:(?P<texture>{texture}) )?(?P<ground>{ground}) background(?:, the camera (?P<camera>{camera}))?\.?",
        re.IGNORECASE | re.ASCII,  # without ASCII, "ſpins" matches "spins" and is no word of the grammar
    )


_CAPTION = _pattern()


def caption(program: Program) -> str:
    """The caption that is true of the clip."""
    return to_text(describe(program))


def parse(text: str) -> Description | None:
    """The description a caption states, or None when it is not a sentence of the grammar."""
    match = _CAPTION.fullmatch(" ".join(text.split()))
    if match is None:
        return None
    subjects = []
    for part in re.split(r" and (?=an? )", match["subjects"].lower()):
        _, color, shape, event = part.split(" ", 3)
        subjects.append((color, shape, event))
    return Description(
        tuple(subjects),
        (match["texture"] or "plain").lower(),
        match["ground"].lower(),
        (match["camera"] or "").lower(),
        match["marker"] is not None,
    )


def reverse_caption(text: str) -> str | None:
    """Gold caption of the clip played backwards, or None when `text` is not a sentence of the grammar."""
    description = parse(text)
    return None if description is None else to_text(reverse_description(description))


def vocabulary() -> list[str]:
    """Every word of the grammar, sorted."""
    words = {"a", "an", "and", "over", "background", ",", "the", "camera", "reversed", "video", "of"}
    phrases = [*COLORS, *SHAPES, *EVENTS, *IRREVERSIBLE, "turns", *TEXTURES, *GROUNDS, *CAMERAS]
    return sorted(words | {word for phrase in phrases for word in phrase.split()})

"""A scored clip as people and programs read it: rows for a table, CSV and JSON, curves, deltas, and a plot of curves.

Notable: the files hold every feature of every frame, so that any other number can be had from them without scoring
again. What is unknown is an empty cell, or null.
"""

from __future__ import annotations

import csv
import io
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from flows.console import CommandError, drafted
from flows.scorer import known
from model import drift
from store.errors import printable

FILES = ("scores.csv", "curves.csv", "deltas.csv", "curves.png")
DELTAS = ("bagger20", "framepack15", "signed15", "rolling5s", "slope")
OTHERS = ("seam", "naturalness_drift", "latent_drift")
PANELS = {  # the features behind the parts of drift: title
    "chroma_spread": "spread of colour (saturation)",
    "luma": "luma (exposure)",
    "contrast_coarse": "contrast of the coarse picture (contrast)",
    "detail": "fineness of detail, ln (detail)",
    "cr": "mean R - Y (cast, saturation)",
    "cb": "mean B - Y (cast, saturation)",
    "flow": "optical flow, share of the short side (motion)",
    "flicker": "second difference of luma (flicker)",
}
NAMED = 12  # clips that a plot tells apart; of more it shows how far each drifted
LABEL = 40  # characters of a name in a plot


@dataclass(frozen=True)
class ClipScore:
    """All that is known of one clip. NaN and None: unknown."""

    head: Mapping[str, Any]  # {"path": …}, or {"clip_id": …, "kind": …, "round": …}
    scores: Mapping[str, Any]  # as flows.scorer.Scored.summary: drift, its parts, drift_part, gates, seam, scorer …
    unit: str  # of drift: generic, clip or evaluation
    num_frames: int | None = None
    prefix_frames: int | None = None
    chunk_frames: int | None = None  # None: not known to be made in chunks
    fps: float | None = None
    curves: Mapping[str, np.ndarray] = field(default_factory=dict)  # of features and metrics, [T]
    metrics: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None  # why it was not, or not wholly, measured

    @property
    def name(self) -> str:
        """Path or clip_id."""
        return str(next(iter(self.head.values())))

    @property
    def key(self) -> str:
        """What `name` is: path or clip_id."""
        return next(iter(self.head))

    def json(self, metrics: Sequence[str], deltas: bool) -> dict[str, Any]:
        """One object: gates and drift_parts are lists, parts, metrics and deltas objects."""
        row: dict[str, Any] = {
            **self.head,
            "drift": self.scores["drift"],
            "drift_part": self.scores["drift_part"],
            "drift_parts": _list(self.scores["drift_parts"]),
            "gates": _list(self.scores["gates"]),
            "parts": {name: self._part(name) for name in drift.PARTS},
            "drift_z": self.scores["drift_z"],
            **{name: self.scores[name] for name in OTHERS},
            "metrics": {name: known(self.metrics.get(name)) for name in metrics},
            **self._facts(),
        }
        if deltas:
            row["deltas"] = self.deltas()
        return row

    def flat(self, metrics: Sequence[str]) -> dict[str, Any]:
        """One row: texts and numbers only, with the store's names of columns."""
        return {
            **self.head,
            **{name: self.scores[name] for name in ("drift", "drift_z", "drift_part", "drift_parts", "gates")},
            **{f"drift_{name}": self._part(name) for name in drift.PARTS},
            **{name: self.scores[name] for name in OTHERS},
            **{name: known(self.metrics.get(name)) for name in metrics},
            **self._facts(),
        }

    def line(self, metrics: Sequence[str]) -> dict[str, Any]:
        """What a person sees: which parts moved, by name, most first; then all parts in units."""
        return {
            self.key: self.name,
            "drift": self.scores["drift"],
            "drift_parts": self.scores["drift_parts"] or self.scores["drift_part"],
            "gates": self.scores["gates"] or None,
            **{name: self._part(name) for name in drift.PARTS},
            **{name: known(self.metrics.get(name)) for name in metrics},
        }

    def _part(self, name: str) -> float | None:
        value = self.scores[f"drift_{name}"]
        return None if value is None else value + 0.0  # -0.0 is 0

    def _facts(self) -> dict[str, Any]:
        return {
            "num_frames": self.num_frames,
            "prefix_frames": self.prefix_frames,
            "chunk_frames": self.chunk_frames,
            "fps": self.fps,
            "unit": self.unit,
            "scorer": self.scores["scorer"],
            "error": self.error,
        }

    def deltas(self) -> dict[str, dict[str, float | None]]:
        """The papers' start-end deltas of each curve, and its slope per chunk where chunks are known.

        A curve whose first frame has no value, as a likeness to the frame before, is taken from frame 1 on; one with
        other gaps has no deltas. Slope: over the whole chunks, a last shorter one left out.
        """
        found = {}
        for name, curve in self.curves.items():
            q = np.asarray(curve, np.float64)
            q = q[1:] if len(q) > 1 and math.isnan(q[0]) else q
            if not len(q) or not np.isfinite(q).all():
                continue
            values = drift.deltas(q, self.fps or 0.0) | {"slope": self._slope(np.asarray(curve, np.float64))}
            found[name] = {one: known(value) for one, value in values.items()}
        return found

    def _slope(self, q: np.ndarray) -> float:
        if not self.chunk_frames or not self.prefix_frames:
            return math.nan
        count = (len(q) - self.prefix_frames) // self.chunk_frames
        if count < 2:
            return math.nan
        whole = q[: self.prefix_frames + count * self.chunk_frames]
        return drift.slope(drift.chunk_curve(np.nan_to_num(whole), self.prefix_frames, self.chunk_frames))


def _list(names: str | None) -> list[str]:
    return names.split(",") if names else []


def csv_lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Rows as CSV with a header; every text in quotes, an unknown value as nothing."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    for cells in [list(rows[0]), *(list(row.values()) for row in rows)] if rows else []:
        writer.writerow(cells)
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()


def _header(names: Sequence[str]) -> str:
    return next(csv_lines([dict.fromkeys(names)]))


# --------------------------------------------------------------------------------------------------------------- files


def check_folder(out: Path, force: bool) -> None:
    """Refuses a folder that cannot be written to, before any work is done for it."""
    if not out.parent.is_dir():
        raise CommandError(f"--out {out}: there is no folder {out.parent}; make it with `mkdir -p {out.parent}`")
    if out.exists() and not out.is_dir():
        raise CommandError(f"--out {out}: is a file; name a folder, {', '.join(FILES)} are written there")
    if there := [name for name in FILES if (out / name).exists()]:
        if any((out / name).is_dir() for name in there):
            raise CommandError(f"--out {out}: {there[0]} in it is a folder, not a file of scores")
        if not force:
            raise CommandError(f"--out {out}: {', '.join(there)} there already; --force replaces them")


def write_files(out: Path, found: Sequence[ClipScore], metrics: Sequence[str]) -> None:
    """FILES in the folder, each whole or not at all. Raises CommandError where they cannot be written."""
    try:
        out.mkdir(exist_ok=True)
    except OSError as error:
        raise CommandError(f"--out {out}: cannot be made: {error.strerror}") from error
    _write_lines(out / "scores.csv", csv_lines([one.flat(metrics) for one in found]))
    _write_lines(out / "curves.csv", _curves(found))
    _write_lines(out / "deltas.csv", _deltas(found))
    with drafted(out / "curves.png") as draft:
        draw(found, draft)


def _write_lines(path: Path, lines: Iterator[str]) -> None:
    # A file's name need not be UTF-8; it is written as it is.
    with drafted(path) as draft, draft.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        file.writelines(lines)


def _curves(found: Sequence[ClipScore]) -> Iterator[str]:
    names = list(dict.fromkeys(name for one in found for name in one.curves))
    yield _header([found[0].key, "frame", "second", *names])
    for one in found:
        length = max((len(curve) for curve in one.curves.values()), default=0)
        rows = []
        for t in range(length):
            values = {name: _short(one.curves[name][t]) if name in one.curves else None for name in names}
            second = round(t / one.fps, 6) if one.fps else None
            rows.append({one.key: one.name, "frame": t, "second": second, **values})
        yield from list(csv_lines(rows))[1:]


def _deltas(found: Sequence[ClipScore]) -> Iterator[str]:
    rows = [
        {one.key: one.name, "feature": name, **{delta: _short(value) for delta, value in values.items()}}
        for one in found
        for name, values in one.deltas().items()
    ]
    yield from csv_lines(rows) if rows else [_header([found[0].key, "feature", *DELTAS])]


def _short(value: float | None) -> float | None:
    """Seven digits, which is what a curve's float32 holds."""
    value = known(value)
    return None if value is None else float(f"{value:.7g}")


# ---------------------------------------------------------------------------------------------------------------- plot


def draw(found: Sequence[ClipScore], path: Path) -> None:
    """A PNG: a panel for each feature behind the parts of drift, a line for each clip, the prefix shaded."""
    from matplotlib.figure import Figure

    shown = [one for one in found if set(PANELS) <= set(one.curves)]
    in_seconds = all(one.fps for one in shown)
    ends = [(one.prefix_frames or 0) / (one.fps if in_seconds and one.fps else 1) for one in shown]
    many = len(shown) > NAMED
    figure = Figure(figsize=(15, 6.4 + 0.25 * (0 if many else math.ceil(len(shown) / 3))), layout="constrained")
    axes = figure.subplots(2, 4)
    colors, styles = _colors(shown)
    handles: list[Any] = []
    width = 0.7 if many else 1.4
    for axis, (feature, title) in zip(axes.flat, PANELS.items(), strict=True):
        for one, color, style in zip(shown, colors, styles, strict=True):
            times = np.arange(len(one.curves[feature])) / (one.fps if in_seconds and one.fps else 1)
            (line,) = axis.plot(times, one.curves[feature], color=color, linestyle=style, linewidth=width)
            if max(ends) - min(ends) > 1e-9:  # no one shade fits them all
                at = max(0, (one.prefix_frames or 1) - 1)
                axis.plot(times[at : at + 1], one.curves[feature][at : at + 1], "o", color=color, markersize=3)
            handles += [line] if axis is axes.flat[0] else []
        if shown and max(ends) - min(ends) <= 1e-9:
            axis.axvspan(0, ends[0], color="#000000", alpha=0.08, linewidth=0)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("seconds" if in_seconds else "frame", fontsize=9)
        axis.grid(alpha=0.25)
        axis.tick_params(labelsize=8)
        axis.margins(x=0)
    figure.suptitle(_title(len(shown), len(found), bool(shown) and max(ends) - min(ends) <= 1e-9), fontsize=11)
    if handles and not many:
        # A leading underscore would hide a name, dollars would set it as mathematics.
        legend = figure.legend(
            handles, [" " + _label(one) for one in shown], loc="outside lower center", ncols=min(3, len(shown)),
            fontsize=8, frameon=False,
        )  # fmt: skip
        for text in legend.get_texts():
            text.set_parse_math(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # letters that the font lacks
        figure.savefig(path, format="png", dpi=110, metadata={"Software": None})


def _colors(shown: Sequence[ClipScore]) -> tuple[list[Any], list[str]]:
    """Colours and line styles: a clip each while they can be told apart, else from light to dark by drift."""
    from matplotlib import colormaps

    if len(shown) <= NAMED:
        ten = colormaps["tab10"]
        return [ten(n % 10) for n in range(len(shown))], ["-" if n < 10 else "--" for n in range(len(shown))]
    values = np.array([one.scores["drift"] if one.scores["drift"] is not None else 0.0 for one in shown])
    ranks = values.argsort(kind="stable").argsort(kind="stable") / (len(shown) - 1)
    return list(colormaps["viridis_r"](ranks, alpha=0.7)), ["-"] * len(shown)


def _title(shown: int, all: int, shaded: bool) -> str:
    count = f"{shown} clip{'' if shown == 1 else 's'}" + (f" of {all}; the others could not be read" * (all > shown))
    if not shown:
        return f"none of {all} clips could be read"
    how = "; darker: more drift" if shown > NAMED else ""
    return f"{count}{how}; {'grey: the prefix' if shaded else 'dots: where the prefix ends'}"


def _label(one: ClipScore) -> str:
    name = printable(one.name)
    name = name if len(name) <= LABEL else "…" + name[1 - LABEL :]
    value = one.scores["drift"]
    parts = one.scores["drift_parts"] or one.scores["drift_part"]
    return f"{name}: {'-' if value is None else f'{value:.3g}'}, {parts}"

"""What an evaluation is written down as: a row a clip, a line a frame, a row a segment, and means for `dvc metrics`.

The real held-out clips go through the same functions, so that every table has a row of what drift is in none at all.
"""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flows import paths
from flows.params import Params
from flows.scorer import Scored, known_curve
from model import drift, features, oracle, vbench
from store.table import read_table

ORACLE = tuple(f"oracle_{name}" for name in oracle.MEASURES)
CURVES = (*features.FEATURES, "naturalness", *ORACLE)  # then those of pretrained metrics
# Of these the deltas of all papers are kept: what the parts of the drift are about, and what passes for quality.
DELTAS = (
    "saturation", "colorfulness", "luma", "contrast", "sharpness", "detail", "blur", "clipped_high", "motion", "flow",
    "flicker", "ssim_first", "naturalness",
)  # fmt: skip
DEFINITIONS = ("bagger20", "framepack15", "signed15", "rolling5s", "slope")
SEGMENT_SECONDS = 5.0
SEGMENTS = 3  # of a clip too short for two of SEGMENT_SECONDS
TEXT = ("clip_id", "prompt", "drift_part", "drift_parts", "gates", "scorer")  # columns that are no numbers
MEANS = (
    "drift", "drift_z", *(f"drift_{part}" for part in drift.PARTS), "naturalness_drift", "latent_drift", "seam", *ORACLE
)  # fmt: skip

Row = dict[str, Any]


class EvaluatedError(ValueError):
    """An evaluation's folder that this version did not write."""


@dataclass(frozen=True)
class Evaluated:
    """One round's evaluation, or the real clips: a row a clip, curves by clip id, rows of segments."""

    rows: list[Row]
    curves: dict[str, dict[str, np.ndarray]]  # clip id: name: [T], NaN where unknown
    segments: list[Row]

    def by_clip(self, name: str) -> dict[str, float]:
        """A known number of the rows, by clip."""
        return {row["clip_id"]: row[name] for row in self.rows if _known(row.get(name))}

    def means(self, name: str) -> np.ndarray:
        """Mean over clips of a curve at every frame, over those that are that long and know it: [T], or [0]."""
        known = [curves[name] for curves in self.curves.values() if name in curves]
        if not known:
            return np.zeros(0)
        padded = np.full((len(known), max(map(len, known))), np.nan)
        for line, curve in zip(padded, known, strict=True):
            line[: len(curve)] = curve
        count = np.isfinite(padded).sum(0)
        return np.where(count, np.nansum(padded, 0) / np.maximum(count, 1), np.nan)


def heldout(params: Params) -> list[Row]:
    """The held-out clips to evaluate with, in a fixed order."""
    columns = ["clip_id", "prompt", "extra", "latents", "latents_shape", "video"]
    rows = read_table(paths.STORE, "seed", columns, "split = 'heldout'").to_pylist()
    return sorted(rows, key=lambda row: str(row["clip_id"]))[: params.evaluation.num_prompts]


def row_of(clip: Mapping[str, Any], scored: Scored, fps: float, chunk_frames: int) -> Row:
    """One clip's scores as a flat row, None where unknown.

    `<definition>_<feature>` are the deltas of DEFINITIONS, oracle_* means over the tail of drift.py.
    """
    frames = len(next(iter(scored.curves.values()), ()))
    row: Row = {"clip_id": clip["clip_id"], "prompt": clip["prompt"], **scored.summary()}
    for name in (*DELTAS, *scored.measures):
        curve = scored.measures[name].curve if name in scored.measures else scored.curves.get(name)
        row |= {
            f"{kind}_{name}": value for kind, value in deltas(curve, scored.prefix_frames, chunk_frames, fps).items()
        }
    tail = drift.tail_frames(frames, scored.prefix_frames) if frames else 0
    row |= scored.oracle(frames - tail)
    row |= {name: one.value for name, one in scored.measures.items()}
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()
    }


def deltas(curve: np.ndarray | None, prefix_frames: int, chunk_frames: int, fps: float) -> dict[str, float]:
    """All DEFINITIONS of a curve [T], NaN where the clip is too short for one or the curve unknown.

    A consistency has no value at frame 0: it starts at frame 1.
    """
    if curve is None or not len(curve):
        return dict.fromkeys(DEFINITIONS, math.nan)
    known = curve[1:] if math.isnan(curve[0]) and len(curve) > 1 else curve
    generated = len(curve) - prefix_frames
    whole = generated >= 2 * chunk_frames and generated % chunk_frames == 0
    slope = math.nan
    if whole:
        slope = drift.slope(drift.chunk_curve(np.nan_to_num(curve, nan=known[0]), prefix_frames, chunk_frames))
    return {**drift.deltas(known, fps), "slope": slope}


def curves_of(scored: Scored) -> dict[str, list[float | None]]:
    """Curves per frame, None where unknown."""
    curves = {**scored.curves, **{f"oracle_{name}": curve for name, curve in scored.oracle_curves.items()}}
    curves |= {name: one.curve for name, one in scored.measures.items()}
    return {name: known_curve(curve) for name, curve in curves.items()}


def segment_seconds(num_frames: int, fps: float) -> float:
    """How long the parts of a clip are: 5 s as in Resampling Forcing; a third of a clip that is shorter than two.

    Never less than a frame."""
    length = num_frames / fps
    if length >= 2 * SEGMENT_SECONDS:
        return SEGMENT_SECONDS
    return length / SEGMENTS if num_frames > SEGMENTS else 1.001 / fps  # a frame, whatever is lost in rounding


def segments_of(
    clip_id: str, scored: Scored, fps: float, seconds: float, measured: Sequence[Mapping[str, Any]] = ()
) -> list[Row]:
    """A row a segment (vbench.segment_bounds): means of the curves over it, None where nothing is known.

    seconds: of a segment, segment_seconds of the long rollouts, for real clips too. measured: the pretrained metrics
    of each, where a segment is a clip of its own (`Scorer.segments`).
    """
    curves = {**scored.curves, **{f"oracle_{name}": curve for name, curve in scored.oracle_curves.items()}}
    frames = len(next(iter(curves.values()), ()))
    if not frames:
        return []
    rows = []
    for index, (start, stop) in enumerate(vbench.segment_bounds(frames, fps, seconds).tolist()):
        row: Row = {"clip_id": clip_id, "segment": index, "start": start / fps, "end": stop / fps}
        row |= {name: mean(curves[name][start:stop]) if name in curves else None for name in CURVES}
        row |= {name: one.value for name, one in measured[index].items()} if measured else {}
        rows.append(row)
    return rows


def result_of(
    clip: Row, scored: Scored, fps: float, chunk_frames: int, seconds: float, measured: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """All that is written down of one clip, JSON-able: what `write_tables` and `evaluated` take a list of."""
    return {
        "row": row_of(clip, scored, fps, chunk_frames),
        "curves": curves_of(scored),
        "segments": segments_of(clip["clip_id"], scored, fps, seconds, measured),
    }


def mean(values: np.ndarray) -> float | None:
    """Mean of what is finite; None if nothing is."""
    known = values[np.isfinite(values)]
    return float(known.mean(dtype=np.float64)) if len(known) else None


def half_width(values: Sequence[float]) -> float:
    """Half the width of the 95 % interval of a mean: Student's t with n - 1 degrees of freedom; 0 for one value."""
    from scipy.special import stdtrit

    if len(values) < 2:
        return 0.0
    spread = np.std(values, ddof=1, dtype=np.float64) / math.sqrt(len(values))
    return float(stdtrit(len(values) - 1, 0.975) * spread)


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """For `dvc metrics`: means over clips of MEANS and of pretrained metrics, drift_ci95 (half the width of the 95 %
    interval), gated (how many clips), drift_part (the share of clips by what they drift in most)."""
    result: dict[str, Any] = {"num_clips": len(rows), "gated": sum(bool(row["gates"]) for row in rows)}
    for name in (*MEANS, *metric_names(rows)):
        values = [row[name] for row in rows if _known(row.get(name))]
        if values:
            result[name] = round(float(np.mean(values, dtype=np.float64)), 4)
        if name == "drift":
            result["drift_ci95"] = round(half_width(values), 4)
    result["drift_part"] = {name: round(share, 4) for name, (share, _) in part_shares(rows).items() if share}
    return result


def part_shares(rows: Sequence[Row]) -> dict[str, tuple[float, float]]:
    """Share of the scored clips that drift most in a part, and of those in which it moved at all, by its name.

    All names of drift.NAMES in their order, then 'none', whose two shares are one. Of no scored clip: all 0.
    """
    scored = [row for row in rows if _known(row.get("drift"))]
    names = [name for pair in drift.NAMES.values() for name in pair if name]
    count = max(1, len(scored))
    shares = {}
    for name in (*names, drift.NO_PART):
        most = sum(row["drift_part"] == name for row in scored) / count
        moved = sum(name in row["drift_parts"].split(",") for row in scored) / count
        shares[name] = (most, moved if name != drift.NO_PART else most)
    return shares


def metric_names(rows: Sequence[Row]) -> list[str]:
    """The pretrained metrics of rows, in order: what has deltas and is no feature."""
    names = dict.fromkeys(name for row in rows for name in row if name.startswith("bagger20_"))
    return [name for one in names if (name := one.removeprefix("bagger20_")) not in DELTAS]


# ---- files


def write_tables(folder: Path, results: Sequence[Mapping[str, Any]], fps: float) -> None:
    """scores.csv, curves.csv and segments.csv of {"row", "curves", "segments"} a clip."""
    rows, parts = [result["row"] for result in results], [row for result in results for row in result["segments"]]
    write_rows(folder / "scores.csv", rows, list(rows[0]))
    write_rows(folder / "segments.csv", parts, ["clip_id", "segment", "start", "end", *CURVES])
    names = list(dict.fromkeys([*CURVES, *(name for result in results for name in result["curves"])]))
    with (folder / "curves.csv").open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(("clip_id", "frame", "second", *names))
        for result in results:
            for t in range(max(map(len, result["curves"].values()), default=0)):
                values = [result["curves"].get(name, [])[t : t + 1] for name in names]
                cells = ["" if not v or v[0] is None else f"{v[0]:.6g}" for v in values]
                lines.writerow((result["row"]["clip_id"], t, f"{t / fps:.4g}", *cells))


def read_tables(folder: Path) -> Evaluated:
    """What write_tables wrote. EvaluatedError for a folder of an older version."""
    try:
        rows, parts, lines = (_read_rows(folder / f"{name}.csv") for name in ("scores", "segments", "curves"))
        if rows and not {"gates", "drift_part"} <= set(rows[0]):
            raise EvaluatedError(f"{folder}/scores.csv has no drift_part")
    except (FileNotFoundError, EvaluatedError) as error:
        raise EvaluatedError(f"{folder} is not an evaluation of this version ({error}); run `dvc repro`") from None
    for row in rows:
        if row.get("drift") is None:  # nothing moved, and nobody knows, are the same empty cell
            row |= {"drift_part": None, "drift_parts": None}
    columns: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        for name in line.keys() - {"clip_id", "frame", "second"}:
            columns[line["clip_id"]][name].append(math.nan if line[name] is None else line[name])
    curves = {
        clip: {name: np.array(curve) for name, curve in found.items() if np.isfinite(curve).any()}
        for clip, found in columns.items()
    }
    return Evaluated(rows, curves, parts)


def evaluated(results: Sequence[Mapping[str, Any]]) -> Evaluated:
    """The same of results that were not written."""
    curves = {
        result["row"]["clip_id"]: {
            name: np.array([math.nan if x is None else x for x in curve]) for name, curve in result["curves"].items()
        }
        for result in results
    }
    return Evaluated([r["row"] for r in results], curves, [row for r in results for row in r["segments"]])


def write_rows(path: Path, rows: Sequence[Row], columns: Sequence[str] = ()) -> None:
    """A CSV file with `columns` first, then what else the rows have; None is an empty cell."""
    columns = list(dict.fromkeys([*columns, *(name for row in rows for name in row)]))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def _read_rows(path: Path) -> list[Row]:
    with path.open(newline="", encoding="utf-8") as file:
        return [
            {name: text if name in TEXT else float(text) if text else None for name, text in row.items()}
            for row in csv.DictReader(file)
        ]


def _known(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)

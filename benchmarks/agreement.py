"""Do the scores agree with the oracle: rank correlations over a project's rollouts, with bootstrap intervals.

Notable: clips of several rounds are ranked within their round, so that a pooled correlation does not thank a score for
telling rounds apart. Intervals resample seed clips, each with its rollouts of all rounds, since rollouts of one clip
are not independent. Used by `python -m benchmarks.scores agreement`.
"""

import csv
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model import drift
from model.oracle import MEASURES
from model.rng import numpy_generator
from store.schema import DRIFT_PARTS
from store.table import read_table, table_names

LEVEL = 0.95
FEWEST = 10  # clips of a round for a correlation
SCORES = ("drift", *(f"|{part}|" for part in DRIFT_PARTS), "ssim_first falls", "naturalness_drift", "latent_drift")
TARGETS = ("error", *(name for name in MEASURES if name != "error"))
Table = tuple[str, list[str], list[list[str]]]


class AgreementError(ValueError):
    """A project without scores that an oracle could be compared with."""


@dataclass(frozen=True)
class Measured:
    """Rollouts of several rounds: `values` [N] by score or `oracle NAME`, NaN where unknown; higher is always worse."""

    name: str
    rounds: np.ndarray
    clips: np.ndarray  # seed clip of each
    values: dict[str, np.ndarray]


def sources(project: Path) -> Iterator[tuple[str, Measured]]:
    """What a project has: the rollouts of its rounds, and the long rollouts of its evaluations."""
    rounds = sorted((n.removeprefix("scores_") for n in _tables(project) if n.startswith("scores_")), key=_number)
    rows = [row for name in rounds for row in _rollouts(project / "data" / "store", name)]
    long = [
        {**row, "round": path.parent.name, "seed_clip_id": row["clip_id"], "drop": _negative(row)}
        for path in sorted(project.glob("evaluation/r*/scores.csv"), key=lambda path: _number(path.parent.name))
        for row in _rows(path)
    ]
    found = [("Rollouts of the training length", "rollouts", rows), ("Long rollouts", "evaluation", long)]
    known = [(title, measured_of(name, some)) for title, name, some in found if some]
    if not known:
        raise AgreementError(
            f"{project} has neither data/store/scores_rK nor evaluation/rK/scores.csv; run `dvc repro`"
        )
    yield from known


def _tables(project: Path) -> list[str]:
    store = project / "data" / "store"
    return table_names(store) if store.is_dir() else []


def _number(name: str) -> int:
    return int(name.removeprefix("r"))


def _rollouts(store: Path, name: str) -> list[dict[str, Any]]:
    columns = ["rollout_id", *(f"drift_{part}" for part in DRIFT_PARTS), "drift", "naturalness_drift", "latent_drift",
               "ssim_first", "oracle_curves"]  # fmt: skip
    scores = read_table(store, f"scores_{name}", columns).to_pylist()
    parents = read_table(store, f"rollouts_{name}", ["rollout_id", "seed_clip_id", "prefix_frames"]).to_pylist()
    rollouts = {row["rollout_id"]: row for row in parents}
    return [{**row, **rollouts[row["rollout_id"]], "round": name, "drop": _drop(row["ssim_first"]),
             **_tail_means(row["oracle_curves"], rollouts[row["rollout_id"]]["prefix_frames"])}
            for row in scores]  # fmt: skip


def _drop(curve: Sequence[float] | None) -> float | None:
    return -drift.signed15(np.array(curve)) if curve else None


def _negative(row: dict[str, Any]) -> float | None:
    value = _float(row.get("signed15_ssim_first"))
    return -value if math.isfinite(value) else None


def _tail_means(text: str | None, prefix_frames: int) -> dict[str, float]:
    """oracle_<measure> over the frames that the drift is of: the columns are means over all that was generated."""
    means = {}
    for name, curve in json.loads(text or "{}").items():
        q = np.array([math.nan if value is None else value for value in curve])
        tail = q[-drift.tail_frames(len(q), prefix_frames) :]
        means[f"oracle_{name}"] = float(np.nanmean(tail)) if np.isfinite(tail).any() else math.nan
    return means


def _rows(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _float(value: Any) -> float:
    return math.nan if value in (None, "") else float(value)


def measured_of(name: str, rows: Sequence[dict[str, Any]]) -> Measured:
    """Rows with `round`, `seed_clip_id`, the columns of a score and `drop`, in arrays."""

    def column(key: str) -> np.ndarray:
        return np.array([_float(row.get(key)) for row in rows])

    values = {"drift": column("drift")} | {f"|{part}|": np.abs(column(f"drift_{part}")) for part in DRIFT_PARTS}
    values |= {"ssim_first falls": column("drop")}
    values |= {key: column(key) for key in ("naturalness_drift", "latent_drift")}
    for measure in MEASURES:
        exact = column(f"oracle_{measure}")
        values[f"oracle {measure}"] = 1 - exact if measure == "object_present" else exact
    return Measured(
        name, np.array([row["round"] for row in rows]), np.array([row["seed_clip_id"] for row in rows]), values
    )


def tables(measured: Measured, resamples: int) -> Iterator[Table]:
    """(heading, columns, rows): every score against the oracle's error by round, and against each measure, pooled."""
    rounds = sorted(set(measured.rounds.tolist()), key=_number)
    count = {name: int((measured.rounds == name).sum()) for name in rounds}
    columns = ["score", *(f"{name} ({count[name]})" for name in rounds), f"all ({sum(count.values())})"]
    scopes = [[name] for name in rounds] + [rounds]
    rows = [[score, *(cell(measured, score, "oracle error", scope, resamples) for scope in scopes)] for score in SCORES]
    yield "Spearman's rank correlation with the oracle's error (clips), 95 % interval:", columns, rows
    rows = [
        [score, *(cell(measured, score, f"oracle {one}", rounds, resamples) for one in TARGETS)] for score in SCORES
    ]
    yield "The same with each of the oracle's measures, all rounds, ranked within rounds:", ["score", *TARGETS], rows


def cell(measured: Measured, score: str, target: str, rounds: Sequence[str], resamples: int) -> str:
    """`rho [low, high]`, or a dash where nothing is known or nothing varies."""
    found = correlate(measured, score, target, rounds, resamples)
    return "–" if math.isnan(found[0]) else "{:.2f} [{:.2f}, {:.2f}]".format(*found)


def correlate(
    measured: Measured, score: str, target: str, rounds: Sequence[str], resamples: int
) -> tuple[float, float, float]:
    """(rho, low, high): rank correlation within rounds over clips where both are known; NaN for fewer than FEWEST.

    The interval is the percentile bootstrap's. Resamples are of seed clips, named by source, rounds and target.
    """
    x, y = measured.values[score], measured.values[target]
    known = np.isfinite(x) & np.isfinite(y) & np.isin(measured.rounds, list(rounds))
    if known.sum() < FEWEST:
        return math.nan, math.nan, math.nan
    x, y, groups = x[known], y[known], measured.rounds[known]
    _, clip = np.unique(measured.clips[known], return_inverse=True)
    rng = numpy_generator("agreement", measured.name, ",".join(rounds), target)
    draws = rng.multinomial(clip.max() + 1, np.full(clip.max() + 1, 1 / (clip.max() + 1)), resamples)
    weights = np.concatenate([np.ones((1, len(x))), draws[:, clip]])
    rho = rank_correlation(x, y, groups, weights)
    if not math.isfinite(rho[0]):
        return math.nan, math.nan, math.nan
    low, high = np.nanquantile(rho[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(rho[0]), float(low), float(high)


def rank_correlation(x: np.ndarray, y: np.ndarray, groups: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Spearman's correlation [R] of x and y [N], each point counted weights [R, N] times, ranked within its group.

    With one group and weights of 1 it is Spearman's rho; ties share their mean rank. NaN where nothing varies.
    """
    a, b = (np.zeros(weights.shape) for _ in range(2))
    for group in np.unique(groups):
        own = groups == group
        for ranks, of in ((a, x), (b, y)):
            ranks[:, own] = centered_ranks(of[own], weights[:, own])
    cross, left, right = ((weights * p * q).sum(1) for p, q in ((a, b), (a, a), (b, b)))
    scale = np.sqrt(left * right)
    return np.where(scale > 1e-12, cross / np.maximum(scale, 1e-12), np.nan)


def centered_ranks(of: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Ranks [R, N] of the points as if each stood there weights [R, N] times, from -1/2 to 1/2, mean 0; ties share."""
    _, place = np.unique(of, return_inverse=True)
    count = np.zeros((len(weights), int(place.max()) + 1))
    np.add.at(count, (slice(None), place), weights)
    total = np.maximum(weights.sum(1, keepdims=True), 1)
    middle = np.cumsum(count, 1) - count / 2
    return (middle / total - 0.5)[:, place]

"""Tables, intervals and pictures of the comparison, from its pieces or from the tables that were kept of them.

Notable: all arms have the same held-out prompts, evaluation noise and seeds, so arms are compared in pairs: the
difference of two arms is taken for each (seed, prompt) first. Its 95 % interval resamples seeds and prompts, both, with
replacement (a crossed bootstrap of DRAWS draws, percentiles): a difference that only one seed or a few prompts show has
a wide one. With few seeds such an interval is too narrow rather than too wide; the means of each seed stand beside it.
"""

from __future__ import annotations

import csv
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.comparison_arms import ARMS, NUM_CHUNKS, Chain, Piece, Scale
from benchmarks.comparison_world import CURVE_STEP, CURVES, MEASURES, record_of
from model.rng import numpy_generator

DRAWS, LEVEL = 2000, 0.95
SHOWN = {  # measure: title; all but objects: lower is better, signed parts: nearer to 0
    "drift": "drift", "drift_saturation": "saturation", "drift_contrast": "contrast", "drift_motion": "motion",
    "oracle_error": "oracle error", "oracle_object_present": "objects", "oracle_background_error": "background",
    "oracle_trajectory_error": "trajectory", "oracle_direction_error": "direction", "oracle_position_error": "position",
}  # fmt: skip
ROWS = ("state", "arm", "round", "seed", "prompt", "length", "gates", *MEASURES)
COSTS = ("state", "arm", "round", "seed", "kind", "seconds", "units", "loss")
POINTS = ("state", "arm", "round", "seed", "frame", *CURVES)
LADDER = ("df", "df_x2", "df_x4", "df_x8")
Key = tuple[str, int]  # arm and round
Row = dict[str, Any]


# ---------------------------------------------------------------- gathering


def gather(chains: Iterable[Chain], folder: Path) -> tuple[list[Row], list[Row], list[Row], dict[Key, np.ndarray]]:
    """Rows of measures, costs and curves of all evaluations that are there, and frames of the lowest seed's.

    Costs are a row for every piece behind an evaluation, and one for itself."""
    rows, costs, points, sheets = [], [], [], {}

    def file(name: str) -> Path:
        return folder / "pieces" / f"{name}.{'json' if name.startswith('evaluation') else 'safetensors'}"

    for chain in sorted(chains, key=lambda one: one.seed):
        pieces = {piece.id: piece for piece in chain.pieces}
        for round, name, behind in chain.evaluations:
            if not file(name).is_file():
                continue
            told = record_of(file(name))
            where = {"state": folder.name, "arm": chain.arm, "round": round, "seed": chain.seed}
            rows += [{**where, **row} for row in told["rows"]]
            for index in range(len(told["curves"][CURVES[0]])):
                values = {name: told["curves"][name][index] for name in CURVES}
                points.append({**where, "frame": index * CURVE_STEP, **values})
            for piece in [pieces[one] for one in behind] + [pieces[name]]:
                costs.append({**where, **_cost(piece, file(piece.id))})
            frames = file(name).with_name(f"{name}.frames.safetensors")
            if (chain.arm, round) not in sheets and frames.is_file():
                from safetensors.numpy import load_file

                sheets[chain.arm, round] = load_file(frames)["frames"]
    return rows, costs, points, sheets


def _cost(piece: Piece, path: Path) -> Row:
    told = record_of(path) if path.is_file() else {}
    loss = told.get("loss") or [{}]
    kind = piece.kind if piece.kind == "evaluation" else f"{piece.kind} r{piece.round}"
    return {"kind": kind, "seconds": told.get("seconds"), "units": piece.units, "loss": loss[-1].get("loss")}


def merge(path: Path, rows: Sequence[Row], columns: Sequence[str]) -> list[Row]:
    """Rows of a CSV file and new ones, which replace those of the same state, arm, round and seed; written and
    read back in order. Rows of another state (other settings) are left out."""
    kept = read(path) if path.is_file() else []
    states = {row["state"] for row in rows}
    if len(states) > 1:
        raise ValueError(f"rows of several states: {', '.join(sorted(states))}")
    if states and (other := {row["state"] for row in kept} - states):
        print(f"{path}: rows of other settings ({', '.join(sorted(other))}) are replaced")
    new = {_where(row) for row in rows}
    rows = [*rows, *(row for row in kept if _where(row) not in new and (not states or row["state"] in states))]
    order = {name: index for index, name in enumerate(ARMS)}
    rows.sort(key=lambda row: (order.get(row["arm"], len(order)), row["round"], row["seed"]))  # stable: then as made
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.part")
    with draft.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_cell(row.get(name)) for name in columns] for row in rows)
    draft.replace(path)
    return read(path)  # rounded as they are kept, so that the report is the same without the pieces


def read(path: Path) -> list[Row]:
    """A table that `merge` wrote: numbers, None for an empty cell."""
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: _value(name, text) for name, text in row.items()} for row in csv.DictReader(file)]


def _where(row: Row) -> tuple[Any, ...]:
    return row["state"], row["arm"], row["round"], row["seed"]


def _cell(value: Any) -> Any:
    return "" if value is None else f"{value:.5g}" if isinstance(value, float) else value


def _value(name: str, text: str) -> Any:
    if name in ("state", "arm", "kind", "gates"):
        return text
    if name in ("round", "seed", "prompt", "length", "frame", "units"):
        return int(text)
    return float(text) if text else None


# ---------------------------------------------------------------- statistics


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return "—"
        if math.isnan(self.low):
            return f"{self.mean:+.3f}"
        digits = 1 if max(abs(self.low), abs(self.high)) >= 20 else 2 if abs(self.high - self.low) >= 0.2 else 3
        text = f"{self.mean:+.{digits}f} [{self.low:+.{digits}f}, {self.high:+.{digits}f}]"
        return f"**{text}**" if self.excludes_zero else text


def crossed(values_SP: np.ndarray, name: str, draws: int = DRAWS) -> Interval:
    """Mean of values [seeds, prompts] over what is known, with the interval of a bootstrap that resamples seeds and
    prompts independently of each other; of a single prompt there is none. `name` names the random stream."""
    known = np.isfinite(values_SP)
    if not known.any():
        return Interval(math.nan, math.nan, math.nan)
    if known.any(0).sum() < 2:  # one prompt says nothing of others
        return Interval(float(values_SP[known].mean()), math.nan, math.nan)
    rng = numpy_generator("comparison", "bootstrap", name)
    seeds, prompts = values_SP.shape
    s, p = rng.integers(0, seeds, (draws, seeds, 1)), rng.integers(0, prompts, (draws, 1, prompts))
    total = np.where(known, values_SP, 0)[s, p].sum((1, 2))
    count = known[s, p].sum((1, 2))
    means = total[count > 0] / count[count > 0]
    low, high = np.quantile(means, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Interval(float(values_SP[known].mean()), float(low), float(high))


def at_cost(units: float, ladder_units: Sequence[float], ladder: np.ndarray) -> np.ndarray | None:
    """Values [S, P] of the controls [N, S, P] at a cost, linear in its logarithm; None outside what they cover."""
    if not ladder_units[0] <= units <= ladder_units[-1]:
        return None
    index = max(1, int(np.searchsorted(ladder_units, units)))
    low, high = math.log(ladder_units[index - 1]), math.log(ladder_units[index])
    part = (math.log(units) - low) / (high - low)
    return np.asarray((1 - part) * ladder[index - 1] + part * ladder[index])


class Results:
    """Measures as arrays [seeds, prompts] by (arm, round), length and name; costs by (arm, round)."""

    def __init__(self, rows: Sequence[Row], costs: Sequence[Row]):
        self.keys: list[Key] = list(dict.fromkeys((row["arm"], row["round"]) for row in rows))
        self.lengths = sorted({row["length"] for row in rows})
        self.seeds = sorted({row["seed"] for row in rows})
        self.prompts = sorted({row["prompt"] for row in rows})
        at: dict[tuple[Key, int, int, int], Row] = {}
        for row in rows:
            at[(row["arm"], row["round"]), row["length"], row["seed"], row["prompt"]] = row
        self._at = at
        self._cost: dict[Key, dict[int, list[Row]]] = defaultdict(lambda: defaultdict(list))
        for row in costs:
            self._cost[row["arm"], row["round"]][row["seed"]].append(row)

    def values(self, key: Key, length: int, name: str) -> np.ndarray:
        """[seeds, prompts], NaN where unknown."""
        found = [[self._at.get((key, length, seed, prompt), {}).get(name) for prompt in self.prompts]
                 for seed in self.seeds]  # fmt: skip
        return np.array(found, dtype=np.float64)

    def gated(self, key: Key, length: int) -> int:
        """How many rollouts failed a hard gate."""
        return sum(bool(row["gates"]) for (k, n, _, _), row in self._at.items() if (k, n) == (key, length))

    def units(self, key: Key) -> float:
        """Units of everything behind a model, without its evaluation."""
        return _mean(sum(r["units"] for r in some if r["kind"] != "evaluation") for some in self._cost[key].values())

    def seconds(self, key: Key, kind: str) -> float:
        """CPU seconds of a kind of piece (`train r1`, `rollouts r1`, `evaluation`), mean over seeds."""
        return _mean(r["seconds"] for some in self._cost[key].values() for r in some if r["kind"] == kind)

    def kinds(self, key: Key) -> list[str]:
        """Kinds of pieces behind an evaluation, in order."""
        return list(dict.fromkeys(row["kind"] for some in self._cost[key].values() for row in some))

    def units_of(self, key: Key, kind: str) -> float:
        """Units of a kind of piece."""
        return _mean(r["units"] for some in self._cost[key].values() for r in some if r["kind"] == kind)


def _mean(values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return float(np.mean(known)) if known else math.nan


def label(key: Key) -> str:
    """An arm and its round, which those without rounds do without."""
    return f"{key[0]} r{key[1]}" if key[0] in ARMS and ARMS[key[0]].rounds else key[0]


# ---------------------------------------------------------------- tables


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table; the first column is aligned left."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def means_table(results: Results, length: int) -> str:
    """Means with those of each seed."""
    columns = ["arm", "compute", *(f"{SHOWN[name]}" for name in SHOWN), "gated"]
    unit = results.units(("df", 0))
    rows = []
    for key in results.keys:
        cells = []
        for name in SHOWN:
            values = results.values(key, length, name)
            by_seed = [_mean(row) for row in values]
            some = [f"{one:.{_digits(name)}f}" for one in by_seed if math.isfinite(one)]
            seeds = f" ({' / '.join(some)})" if len(some) > 1 and key[0] != "real" else ""
            cells.append(f"{_mean(values.flat):.{_digits(name)}f}{seeds}")
        ratio = results.units(key) / unit
        compute = "" if key[0] == "real" or math.isnan(ratio) else f"{ratio:.2f}"
        rows.append([label(key), compute, *cells, str(results.gated(key, length))])
    return table(columns, rows)


def _digits(name: str) -> int:
    return 2 if name.startswith("drift") else 3


def differences_table(results: Results, length: int, against: Mapping[Key, Key]) -> str:
    """Paired differences with their intervals; against: what each key is compared with."""
    rows = []
    for key, other in against.items():
        cells = []
        for name in SHOWN:
            gap = results.values(key, length, name) - results.values(other, length, name)
            cells.append(str(crossed(gap, f"{label(key)}/{label(other)}/{length}/{name}")))
        rows.append([label(key), label(other), *cells])
    return table(["arm", "against", *SHOWN.values()], rows)


def partners(results: Results) -> tuple[dict[Key, Key], dict[Key, Key]]:
    """What arms are compared with: `df`; and the arm that they are variants of, at the same round or its last."""
    base = ("df", 0)
    to_base = {key: base for key in results.keys if key != base and key[0] != "real"}
    own: dict[Key, Key] = {}
    for key in results.keys:
        name = ARMS[key[0]].against if key[0] in ARMS else "df"
        rounds = [round for arm, round in results.keys if arm == name and round <= key[1]]
        if name != "df" and rounds:
            own[key] = name, max(rounds)
    return (to_base if base in results.keys else {}), own


def compute_gaps(results: Results, length: int, name: str) -> dict[Key, Interval | None]:
    """Every arm's difference to diffusion forcing of the same compute; None where the controls do not reach."""
    ladder = [key for one in LADDER if (key := (one, 0)) in results.keys]
    if len(ladder) < 2:
        return {}
    units = [results.units(key) for key in ladder]
    values = np.stack([results.values(key, length, name) for key in ladder])
    found: dict[Key, Interval | None] = {}
    for key in results.keys:
        if key in ladder or key[0] == "real":
            continue
        there = at_cost(results.units(key), units, values)
        gap = None if there is None else results.values(key, length, name) - there
        found[key] = None if gap is None else crossed(gap, f"compute/{label(key)}/{length}/{name}")
    return found


def compute_table(results: Results, length: int) -> str:
    """Differences to diffusion forcing at equal compute."""
    by_name = {name: compute_gaps(results, length, name) for name in SHOWN}
    unit = results.units(("df", 0))
    rows = [
        [label(key), f"{results.units(key) / unit:.2f}",
         *("beyond the controls" if (one := found[key]) is None else str(one) for found in by_name.values())]
        for key in next(iter(by_name.values()))
    ]  # fmt: skip
    return table(["arm", "compute", *SHOWN.values()], rows) if rows else ""


def costs_table(results: Results) -> str:
    """What each evaluated model took: the last round's own pieces and everything together."""
    rows = []
    for key in results.keys:
        if key[0] == "real":
            continue
        own = [f"{kind} r{key[1]}" for kind in ("train", "rollouts", "clips")]
        seconds = [results.seconds(key, kind) for kind in own]
        units = [results.units_of(key, kind) for kind in own[:2]]
        behind = [kind for kind in results.kinds(key) if kind != "evaluation"]
        total = sum(results.seconds(key, kind) for kind in behind)
        cells = [f"{one:.0f}" if math.isfinite(one) else "" for one in seconds]
        counted = [f"{one / 1e6:.2f}" if math.isfinite(one) else "" for one in units]
        rows.append([label(key), *cells, *counted, f"{total:.0f}", f"{results.units(key) / 1e6:.2f}",
                     f"{results.seconds(key, 'evaluation'):.0f}"])  # fmt: skip
    columns = ["arm", "training, s", "rollouts, s", "clips, s", "training, M units", "rollouts, M units",
               "all rounds, s", "all rounds, M units", "evaluation, s"]  # fmt: skip
    return table(columns, rows)


def text(results: Results, scale: Scale, frames: int) -> str:
    """All tables as markdown."""
    to_base, own = partners(results)
    seeds, state = ", ".join(map(str, results.seeds)), scale.name
    parts = [
        "# Comparison",
        f"Written by `python -m benchmarks.comparison report`. Scale `{state}`: {scale.steps} steps of {scale.batch} "
        f"clips, {scale.clips} training clips of {frames} frames, {scale.rollouts} rollouts a round; seeds {seeds}; "
        f"{scale.prompts} held-out prompts, the first {scale.long_prompts} of them at {scale.lengths[-1]}x.",
        "Drift and its parts: in units of what real clips of that length do. Intervals: 95 %, of paired differences, "
        f"by a crossed bootstrap over seeds and prompts ({DRAWS:,} draws). **Bold**: the interval excludes 0; "
        "nothing is corrected for how many there are. Compute: in that of `df`, one training of one time the steps; "
        "the rollouts and trainings of earlier rounds included, decoding and encoding not.",
    ]  # fmt: skip
    for length in results.lengths:
        title = f"{length}x the training length ({length * frames} frames)"
        parts += [f"## {title}", "Means, of each seed in brackets.", means_table(results, length)]
        if to_base:
            parts += ["Difference from `df`, at equal steps of the last training.",
                      differences_table(results, length, to_base)]  # fmt: skip
        if own:
            parts += ["Difference from the arm that it is a variant of.", differences_table(results, length, own)]
        if equal := compute_table(results, length):
            parts += ["Difference from diffusion forcing at equal compute, read off between `df`, `df_x2`, `df_x4` and "
                      "`df_x8` (linear in the logarithm).", equal]  # fmt: skip
    parts += ["## Costs", "Of the last round's pieces, and of everything behind the model. CPU seconds on one thread, "
              "mean over seeds; a unit is a token through one forward (forward and backward: three).",
              costs_table(results)]  # fmt: skip
    parts += ["## Arms", "\n".join(f"- `{arm}`: {ARMS[arm].told}" for arm in dict.fromkeys(a for a, _ in results.keys)
                                   if arm in ARMS)]  # fmt: skip
    return "\n\n".join(parts) + "\n"


# ---------------------------------------------------------------- findings

FOUND = ("drift", "oracle_error", "oracle_object_present", "drift_motion", "drift_contrast")


def brief_table(results: Results, length: int, keys: Sequence[Key], other: Key) -> str:
    """Means with the paired difference from `other` in brackets."""
    unit, rows = results.units(("df", 0)), []
    for key in keys:
        cells = []
        for name in FOUND:
            values, gap = results.values(key, length, name), ""
            if key[0] != "real" and key != other:
                compared = f"{label(key)}/{label(other)}/{length}/{name}"
                gap = f" ({crossed(values - results.values(other, length, name), compared)})"
            cells.append(f"{_mean(values.flat):.2f}{gap}")
        rows.append([label(key), "" if key[0] == "real" else f"{results.units(key) / unit:.1f}", *cells])
    return table(["arm", "compute", *(SHOWN[name] for name in FOUND)], rows)


def fill_findings(results: Results, path: Path) -> None:
    """Renew the tables of docs/findings.md, which stand between `<!-- TABLE name -->` and `<!-- end -->`."""
    main = [key for key in results.keys if key[0] not in ARMS or ARMS[key[0]].group == "main"]

    def kin(name: str) -> list[Key]:
        """The variants of an arm that have all seeds."""
        found = [key for key in results.keys if key[0] in ARMS and key[0] != name and ARMS[key[0]].against == name]
        return [key for key in found if np.isfinite(results.values(key, results.lengths[0], "drift")).any(1).all()]

    made = {f"{length}x": brief_table(results, length, main, ("df", 0)) for length in results.lengths}
    corrupted, longer = ("corrupted_history", 0), ("corrupted_history_x2", 0)
    compared = {
        "corrupted": (corrupted, kin("corrupted_history")),
        "compute": (longer, [key for key in kin("corrupted_history") if ARMS[key[0]].rounds]),
        "open": (("bagger", ARMS["bagger"].rounds), kin("bagger")),
    }
    for title, (key, others) in compared.items():
        made |= {f"{title} {length}x": brief_table(results, length, [key, *others], key) for length in results.lengths}
    parts = re.split(r"(<!-- TABLE (.+?) -->).*?(<!-- end -->)", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    out = [parts[0]]
    for start, name, end, text in zip(*(parts[k::4] for k in (1, 2, 3, 4)), strict=True):
        out += [start, f"\n\n{made[name]}\n\n", end, text]
    path.write_text("".join(out), encoding="utf-8")


# ---------------------------------------------------------------- pictures


def draw_compute(results: Results, path: Path) -> None:
    """Drift and oracle error against compute: the controls as a line, every other arm as a point with its interval."""
    pyplot = _pyplot()
    names = ("drift", "oracle_error")
    figure, axes = pyplot.subplots(len(names), len(results.lengths), figsize=(4.6 * len(results.lengths), 7),
                                   layout="constrained", squeeze=False)  # fmt: skip
    colors = _colors(results.keys)
    ladder = [key for one in LADDER if (key := (one, 0)) in results.keys]
    unit = results.units(ladder[0]) if ladder else 1.0
    for row, name in zip(axes, names, strict=True):
        for axis, length in zip(row, results.lengths, strict=True):
            for key in (key for key in results.keys if key not in ladder and key[0] != "real"):
                one = crossed(results.values(key, length, name), f"{label(key)}/{length}/{name}")
                bars = [[one.mean - one.low], [one.high - one.mean]]
                axis.errorbar(results.units(key) / unit, one.mean, bars, fmt="o", markersize=4, elinewidth=0.8,
                              color=colors[key], label=label(key))  # fmt: skip
            found = [crossed(results.values(key, length, name), f"{label(key)}/{length}/{name}") for key in ladder]
            x = [results.units(key) / unit for key in ladder]
            axis.plot(x, [one.mean for one in found], color="black", marker="s", markersize=4,
                      label="diffusion forcing, longer")  # fmt: skip
            axis.fill_between(x, [one.low for one in found], [one.high for one in found], color="black", alpha=0.12)
            if ("real", 0) in results.keys:
                real = _mean(results.values(("real", 0), length, name).flat)
                axis.axhline(real, color="grey", linestyle="--", linewidth=0.8, label="real clips")
            axis.set_xscale("log", base=2)
            axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axis.set_title(f"{SHOWN[name]}, {length}x", fontsize=10)
            axis.tick_params(labelsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("compute, in trainings of `df`", fontsize=8)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=7, frameon=False)
    _save(figure, path)


def draw_differences(results: Results, against: Mapping[Key, Key], path: Path) -> None:
    """Paired differences of drift and oracle error with their intervals, a line an arm, a colour a length."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 1.2 + 0.34 * len(against)), layout="constrained", sharey=True)
    shades = pyplot.cm.viridis(np.linspace(0.1, 0.8, len(results.lengths)))
    for axis, name in zip(axes, ("drift", "oracle_error"), strict=True):
        for index, length in enumerate(results.lengths):
            for line, (key, other) in enumerate(against.items()):
                gap = results.values(key, length, name) - results.values(other, length, name)
                one = crossed(gap, f"{label(key)}/{label(other)}/{length}/{name}")
                y = line + 0.2 * (index - (len(results.lengths) - 1) / 2)
                axis.plot([one.low, one.high], [y, y], color=shades[index], linewidth=1.2)
                axis.plot(one.mean, y, "o", color=shades[index], markersize=4, label=f"{length}x" if not line else None)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_title(f"{SHOWN[name]}: difference with 95 % interval (left is better)", fontsize=10)
    axes[0].set_yticks(range(len(against)), [f"{label(a)} − {label(b)}" for a, b in against.items()], fontsize=8)
    axes[0].invert_yaxis()
    axes[0].legend(fontsize=8)
    _save(figure, path)


def draw_curves(points: Sequence[Row], keys: Sequence[Key], frames: int, path: Path) -> None:
    """Saturation, contrast, motion and oracle error over time: means over prompts and seeds, a line an arm."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(2, 2, figsize=(12, 7), layout="constrained")
    colors = _colors(keys)
    titles = {"contrast_coarse": "contrast, coarse picture", "flow": "motion (flow)", "oracle_error": "oracle error"}
    for axis, name in zip(axes.flat, CURVES, strict=True):
        for key in keys:
            values: dict[int, list[float]] = defaultdict(list)
            for row in points:
                if (row["arm"], row["round"]) == key and row[name] is not None:
                    values[row["frame"]].append(row[name])
            x = [frame + CURVE_STEP / 2 for frame in values]
            style = {"color": "grey", "linestyle": "--"} if key[0] == "real" else {"color": colors[key]}
            axis.plot(x, [float(np.mean(some)) for some in values.values()], label=label(key), linewidth=1.2, **style)
        axis.axvline(frames, color="black", linewidth=0.5, linestyle=":")
        axis.set_title(titles.get(name, name), fontsize=10)
    for axis in axes[-1]:
        axis.set_xlabel("frame (dotted: the training length)", fontsize=8)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8, frameon=False)
    _save(figure, path)


def draw_sheet(sheets: Mapping[Key, np.ndarray], keys: Sequence[Key], path: Path, prompts: Sequence[int]) -> None:
    """Frames over the longest rollouts, a row an arm, a block of columns a prompt."""
    pyplot = _pyplot()
    shown = [key for key in keys if key in sheets]
    if not shown:
        return
    prompts = [one for one in prompts if one < min(len(sheets[key]) for key in shown)]
    lines = []
    for key in shown:
        parts = []
        for prompt in prompts:
            parts += [*sheets[key][prompt], np.full((32, 8, 3), 255, np.uint8)]
        lines += [np.concatenate(parts[:-1], axis=1)]
    rows = np.stack([np.pad(line, ((1, 1), (0, 0), (0, 0)), constant_values=255) for line in lines])
    picture = rows.reshape(-1, *rows.shape[2:])
    height = rows.shape[1]
    figure, axis = pyplot.subplots(figsize=(13, 13 * len(picture) / picture.shape[1] + 0.6), layout="constrained")
    axis.imshow(picture, interpolation="nearest")
    axis.set_yticks([height * (index + 0.5) for index in range(len(shown))], [label(key) for key in shown], fontsize=8)
    axis.set_xticks([])
    axis.set_title("held-out prompts over the longest rollouts: evenly spaced frames, the first is real", fontsize=9)
    for side in axis.spines.values():
        side.set_visible(False)
    _save(figure, path)


def _colors(keys: Sequence[Key]) -> dict[Key, Any]:
    """A hue an arm, darker with its rounds."""
    pyplot = _pyplot()
    arms = list(dict.fromkeys(arm for arm, _ in keys if arm != "real"))
    found = {}
    for arm, round in keys:
        if arm == "real":
            found[arm, round] = "grey"
            continue
        rounds = sorted(r for a, r in keys if a == arm)
        strong = [hue for hue in range(0, 20, 2) if hue != 14]  # without grey, which is that of real clips
        hues = [*strong, *(hue + 1 for hue in strong)]
        base = np.array(pyplot.cm.tab20(hues[arms.index(arm) % len(hues)])[:3])
        part = rounds.index(round) / (len(rounds) - 1) if len(rounds) > 1 else 0.5
        found[arm, round] = tuple(1 - (1 - base) * (0.4 + 1.2 * part) if part < 0.5 else base * (1.5 - part))
    return found


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    _pyplot().close(figure)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


# ---------------------------------------------------------------- all of it


def report(
    chains: Sequence[Chain], folder: Path, scale: Scale, tables: Path, images: Path, findings: Path | None = None
) -> None:
    """Merge what is there into `tables`, write comparison.md beside them and pictures into `images`, print the tables;
    renew those in `findings`.

    Raises ValueError where there is nothing at all."""
    rows, costs, points, sheets = gather(chains, folder)
    names = list(dict.fromkeys(one.arm for one in chains))

    def all_of(name: str, new: Sequence[Row], columns: Sequence[str]) -> list[Row]:
        merged = merge(tables / f"{name}.csv", new, columns)
        return [row for row in merged if row["arm"] in names]

    rows = all_of("comparison", rows, ROWS)
    costs, points = all_of("comparison_costs", costs, COSTS), all_of("comparison_curves", points, POINTS)
    if not rows:
        raise ValueError(f"nothing to report: {folder} and {tables}/comparison.csv hold no evaluation of these arms")
    results = Results(rows, costs)
    frames = NUM_CHUNKS * 2
    written = text(results, scale, frames)
    (tables / "comparison.md").write_text(written, encoding="utf-8")
    print(written)
    last = {arm: max(r for a, r in results.keys if a == arm) for arm, _ in results.keys}
    for group in dict.fromkeys(ARMS[arm].group for arm in last):
        # Variants are seen beside what they vary.
        keys = [(arm, round) for arm, round in last.items()
                if ARMS[arm].group == group or (group != "main" and arm in ("real", "df", "bagger"))]  # fmt: skip
        ending = "" if group == "main" else f"_{group}"
        draw_curves(points, keys, frames, images / f"comparison_curves{ending}.png")
        draw_sheet(sheets, keys, images / f"comparison_frames{ending}.png", (0, 1, 2))
        to_base, own = partners(results)
        pairs = to_base if group == "main" else {**to_base, **own}
        pairs = {key: other for key, other in pairs.items() if ARMS[key[0]].group == group}
        if pairs:
            draw_differences(results, pairs, images / f"comparison_differences{ending}.png")
    draw_compute(results, images / "comparison_compute.png")
    if findings is not None:
        fill_findings(results, findings)
    print(f"tables: {tables}/comparison*.csv, comparison.md; pictures: {images}/comparison_*.png")

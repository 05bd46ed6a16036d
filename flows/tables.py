"""The report's tables: Markdown for people, rows for CSV; among them those of two papers in the form they print.

Notable: every table has the real held-out clips as its first row, scored in the same way: what is there is no drift but
what the world and the number of clips do. `±` is half the width of the 95 % interval of a mean over clips (Student's
t); in brackets stands the mean change from r0 on the same prompts, whose interval is narrower than that of a
difference of means. No stand-in has a paper's name: a column is called what it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flows.evaluated import DEFINITIONS, DELTAS, ORACLE, Evaluated, Row, half_width, mean, metric_names, part_shares
from model import drift, oracle, vbench

REAL = "real"
FIRST = "r0"
Sets = Mapping[str, Evaluated]  # REAL first, then the rounds in order

# What of the weight-free curves stands in BAgger's table, with the sign that makes falling bad.
BAGGER = {
    "naturalness": ("naturalness*", -1.0), "saturation": ("saturation", 1.0), "colorfulness": ("colourfulness", 1.0),
    "contrast": ("contrast", 1.0), "sharpness": ("sharpness", 1.0), "luma": ("luma", 1.0), "flow": ("flow", 1.0),
}  # fmt: skip
# What stands in the groups of Resampling Forcing's table, the first that is there in its short form. The truth is known
# in the toy world alone.
GROUPS = {
    "temporal": (
        "temporal_quality", "subject_consistency", "background_consistency", "temporal_flickering",
        "dynamic_degree_dis", "flow", "flicker",
    ),
    "visual": ("frame_wise_quality", "aesthetic_quality", "naturalness", "saturation", "contrast", "sharpness"),
    "text": ("text_alignment", "clip_score"),
    "truth": (
        "oracle_error", "oracle_object_present", "oracle_trajectory_error", "oracle_direction_error",
        "oracle_order_error", "oracle_background_error",
    ),
}  # fmt: skip
LOWER = {"flicker", "naturalness", *(name for name in ORACLE if name.endswith("_error"))}
NEUTRAL = {"flow", "saturation", "contrast", "sharpness", "dynamic_degree_dis"}  # as real clips have it is best
DEFINED = {
    "framepack15": """\
Distance of the mean of the first 15 % from the mean of the last 15 %, FramePack (arXiv:2504.12626, eq. 7). Noise alone
makes it positive: compare with the real clips.""",
    "signed15": """\
Mean of the last 15 % − mean of the first 15 %: the same with its sign, positive where it rises.""",
    "rolling5s": """\
Distance of the mean of the first 5 s from the mean of the last 5 s, Rolling Forcing (arXiv:2509.25161). In clips
shorter than 10 s the two overlap.""",
    "slope": """\
Least-squares slope over the generated chunks, per chunk.""",
}
SUMMARY = """\
# Scores by round

Means over clips; in brackets the mean change from r0 on the same prompts, with its 95 % interval. Drift and its signed
parts are in units of what real clips of that length do (1 is ordinary)."""
PARTS = """\
# What clips drift in

Share of clips that drift most in this part, and in brackets of those where it moved at all, alone or beside others. A
part has moved if it is further from 0 than real clips bring it; the bounds are meant to let one real clip in 20 pass,
and the row `real` says how many do."""
BAGGER_SAID = """\
# BAgger's drifting metric

ΔM = mean over the first 20 % of frames − mean over the whole clip (arXiv:2512.12080); above 0 where M falls, lower is
better; a linear fall by D gives 0.4 D. The paper's M are aesthetic and imaging quality, in percent.

\\*Imaging quality cannot be had under a free licence: naturalness, its sign turned so that higher is better, stands in
its place under its own name. The other M are no qualities: as much below 0 is as bad. The last two columns are signed
the other way, above 0 where saturation rises, because the paper's first round over-corrects into under-saturation: the
last 15 % − the first 15 %, and the part of the drift, in units of real clips."""
NO_AESTHETIC = """
Aesthetic quality was not measured here (`scoring.metrics` in params.yaml)."""
RESAMPLING_SAID = """\
# Part by part

In the form of Resampling Forcing's table 1 (arXiv:2512.15702): how good each part of the clip is, by itself; ↑ higher
is better, ↓ lower, ~ as the real clips have it. The paper's columns are VBench's temporal and visual quality and text
alignment. They stand here only where all metrics of such a group were measured; otherwise it is the first measure of
the group that was, under its own name. Metrics of pretrained networks are in percent and take each part as a clip of
its own; flow is in percent of the short side a frame."""
DELTAS_SAID = """\
# Start and end

Means over clips of start-end deltas of one score a frame. The definitions are not comparable with each other: a linear
fall by D over the clip gives 0.4 D in BAgger's (bagger_table.md), 0.85 D in FramePack's and about D in Rolling
Forcing's."""


def summary(sets: Sets) -> str:
    """summary.md: means of every score by round, with the paired change from r0."""
    metrics = metric_names([row for one in sets.values() for row in one.rows])
    sections = {
        "Drift": {"drift": "drift", "drift_z": "robust z", **{f"drift_{part}": part for part in drift.PARTS}},
        "Beside it": {
            "naturalness_drift": "naturalness drift", "latent_drift": "latent drift", "seam": "seam",
            **{name: spelled(name) for name in metrics},
        },
        "Oracle (mean over the last third of the generated frames)": {
            f"oracle_{name}": name.replace("_", " ").replace("color", "colour") for name in sorted(
                oracle.MEASURES, key=lambda name: name != "error"
            )
        },
    }  # fmt: skip
    text = [SUMMARY]
    for title, columns in sections.items():
        names = {name: shown for name, shown in columns.items() if any(one.by_clip(name) for one in sets.values())}
        if not names:
            continue
        head = ["round", *names.values(), *(["failed a gate"] if title == "Drift" else [])]
        rows = []
        for k, one in sets.items():
            cells = [k, *(_changed(one, sets.get(FIRST), name, k) for name in names)]
            rows.append(cells + ([str(sum(bool(row["gates"]) for row in one.rows))] if title == "Drift" else []))
        text += [f"## {title}", markdown(head, rows)]
    return "\n\n".join(text) + "\n"


def parts(sets: Sets) -> tuple[str, list[Row]]:
    """parts_table: the share of clips by the part they drift in most, and by each that moved at all."""
    shares = {k: part_shares(one.rows) for k, one in sets.items()}
    names = [name for name in shares[next(iter(shares))] if any(any(found[name]) for found in shares.values())]
    rows = [[k, *(f"{found[n][0]:.0%} ({found[n][1]:.0%})" for n in names)] for k, found in shares.items()]
    table = [
        {"round": k, "part": name, "foremost": round(found[name][0], 4), "moved": round(found[name][1], 4)}
        for k, found in shares.items() for name in found
    ]  # fmt: skip
    return f"{PARTS}\n\n{markdown(['round', *names], rows)}\n", table


def bagger(sets: Sets) -> tuple[str, list[Row]]:
    """bagger_table: ΔM = mean over the first 20 % of frames − mean over all, a row a round (arXiv:2512.12080).

    The paper's M are VBench's aesthetic and imaging quality, in percent; the first stands here if it was measured.
    """
    aesthetic = any(one.by_clip("bagger20_aesthetic_quality") for one in sets.values())
    columns = {"aesthetic_quality": ("Aesthetic", 100.0)} if aesthetic else {}
    columns |= BAGGER
    names = {
        name: given for name, given in columns.items() if any(one.by_clip(f"bagger20_{name}") for one in sets.values())
    }
    rows, table = [], []
    for k, one in sets.items():
        cells, numbers = [k], Row(round=k)
        for name, (_, sign) in names.items():
            values = [sign * value for value in one.by_clip(f"bagger20_{name}").values()]
            cells.append(_estimate(values))
            numbers |= _numbers(f"delta_{name}", values)  # as printed: in percent, or with its sign turned
        late = list(one.by_clip("signed15_saturation").values())
        cells += [_estimate(late), _estimate(list(one.by_clip("drift_saturation").values()))]
        rows.append(cells)
        table.append(numbers | _numbers("signed15_saturation", late))
    head = ["round", *(f"Δ {shown}" for shown, _ in names.values()), "saturation, late − early", "drift in saturation"]
    text = BAGGER_SAID if aesthetic else f"{BAGGER_SAID}\n{NO_AESTHETIC}"
    return f"{text}\n\n{markdown(head, rows)}\n", table


def resampling(sets: Sets) -> tuple[str, list[Row]]:
    """resampling_table: temporal and visual quality and text by segment and round, as table 1 of arXiv:2512.15702."""
    table, labels = [], {}
    for k, one in sets.items():
        for index in sorted({int(row["segment"]) for row in one.segments}):
            found = [row for row in one.segments if row["segment"] == index]
            start, end = found[0]["start"], max(row["end"] for row in found)
            table.append({"round": k, "segment": index, "start": start, "end": end, **segment_means(found)})
            labels[index] = f"{start:.3g}–{end:.3g} s"  # of the last round: all generated clips are as long
    present = {
        group: [name for name in names if any(row.get(name) is not None for row in table)]
        for group, names in GROUPS.items()
    }
    leads = [names[0] for names in present.values() if names]
    cells = {(row["round"], row["segment"]): row for row in table}
    head = ["round", *(f"{label}: {_arrow(name)}" for label in labels.values() for name in leads)]
    short = [[k, *(_scaled(cells.get((k, index), {}), name) for index in labels for name in leads)] for k in sets]
    shown = [(group, name) for group, names in present.items() for name in names]
    long_head = ["round", "segment", *(f"{group}: {_arrow(name)}" for group, name in shown)]
    long = [[k, labels[i], *(_scaled(row, name) for _, name in shown)] for (k, i), row in cells.items()]
    return (
        f"{RESAMPLING_SAID}\n\n{markdown(head, short)}\n\n## All measures\n\n{markdown(long_head, long)}\n",
        table,
    )


def segment_means(rows: Sequence[Row]) -> dict[str, float | None]:
    """Means over clips of the numbers of one segment, and VBench's groups of them where all their parts are there."""
    names = dict.fromkeys(name for row in rows for name in row.keys() - {"clip_id", "segment", "start", "end"})
    means = {name: mean(np.array([row.get(name) for row in rows], np.float64)) for name in sorted(names)}
    return means | vbench.groups(means)


def deltas(sets: Sets) -> tuple[str, list[Row]]:
    """deltas_table: start-end deltas as other papers define them, means over clips; a row a feature and round."""
    features = [*DELTAS, *metric_names([row for one in sets.values() for row in one.rows])]
    table = []
    for kind in DEFINITIONS:
        for k, one in sets.items():
            for name in features:
                values = list(one.by_clip(f"{kind}_{name}").values())
                if values:
                    row = {"definition": kind, "round": k, "feature": name, "mean": _digits(float(np.mean(values)))}
                    table.append(row | {"ci95": _digits(half_width(values)), "clips": len(values)})
    text = [DELTAS_SAID]
    for kind, said in DEFINED.items():
        found = {(row["round"], row["feature"]): row for row in table if row["definition"] == kind}
        if not found:
            text += [f"## {kind}", f"{said} No clip is long enough for it."]
            continue
        rows = [
            [spelled(name), *(
                f"{cell['mean']:.3g} ± {cell['ci95']:.2g}" if (cell := found.get((k, name))) else "" for k in sets
            )]
            for name in features
        ]  # fmt: skip
        text += [f"## {kind}", said, markdown(["", *sets], rows)]
    return "\n\n".join(text) + "\n", table


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; `|` in a cell is escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def spelled(name: str) -> str:
    """A column's name as people read it."""
    return name.removeprefix("oracle_").replace("_", " ").replace("color", "colour")


def paired(one: Evaluated, first: Evaluated, name: str) -> np.ndarray:
    """Changes of a number from one evaluation to another on the clips that both know it of."""
    after, before = one.by_clip(name), first.by_clip(name)
    return np.array([after[clip] - before[clip] for clip in before if clip in after])


def _changed(one: Evaluated, first: Evaluated | None, name: str, round: str) -> str:
    values = list(one.by_clip(name).values())
    cell = f"{np.mean(values):.3g}" if values else ""
    if first is not None and round not in (REAL, FIRST):
        change = paired(one, first, name)
        if len(change) > 1:
            cell += f" ({change.mean():+.2g} ± {half_width(change.tolist()):.2g})"
    return cell


def _estimate(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3g} ± {half_width(values):.2g}" if len(values) else ""


def _numbers(name: str, values: Sequence[float]) -> Row:
    known = bool(len(values))
    return {
        name: _digits(float(np.mean(values))) if known else None,
        f"{name}_ci95": _digits(half_width(values)) if known else None,
    }


def _digits(value: float) -> float:
    return float(f"{value:.6g}")


def _scaled(row: Mapping[str, Any], name: str) -> str:
    """A cell; scores of pretrained networks and groups in percent, as the paper prints them, and flow too."""
    value = row.get(name)
    percent = name == "flow" or not (name in ORACLE or name in DELTAS)
    return "" if value is None else f"{100 * value:.4g}" if percent else f"{value:.3g}"


def _arrow(name: str) -> str:
    prefix = "oracle " if name.startswith("oracle_") else ""
    return f"{prefix}{spelled(name)} {'↓' if name in LOWER else '~' if name in NEUTRAL else '↑'}"

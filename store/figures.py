"""Figures of a published round, of which its card is made."""

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from store.catalog import SEED_ROUND, read_runs
from store.digest import canonical_json
from store.licence import licences_of
from store.query import plain_rows
from store.schema import DRIFT_PARTS
from store.stats import QUANTILES

if TYPE_CHECKING:
    from store.database import Store

BINS = (0, 0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)  # of drift; the last is open
COUNTED = ("drift_part", "reversal_class", "marker_style", "rewriter_kind", "verdict", "gates")


def figures(store: "Store", entries: pa.Table) -> dict[str, Any]:
    """Figures of some of a round's catalog rows, plain enough for JSON.

    clips; counts of COUNTED; drift: quantiles, mean, counts in BINS, unknown; parts: mean of each signed part of drift
    over the clips that have it; models, samplers, licences, rewrite_models (MODEL@REVISION that was asked): each with
    its number of clips; shapes: of the videos; runs: of the stages that made them.
    """
    name = entries["round"][0].as_py()
    counted = {one: _counts(entries[one]) for one in COUNTED if entries[one].null_count < entries.num_rows}
    drift = entries["drift"].to_numpy().astype(np.float64)
    known = drift[np.isfinite(drift)]
    facts: dict[str, Any] = {"clips": entries.num_rows, **counted, "licenses": _counts(licences_of(store, entries))}
    if len(known):
        facts["drift"] = {one: round(float(np.quantile(known, share)), 3) for one, share in QUANTILES.items()}
        facts["drift"] |= {"mean": round(float(known.mean()), 3), "unknown": len(drift) - len(known)}
        edges = np.searchsorted(BINS, known, side="right") - 1
        facts["drift"]["counts"] = np.bincount(edges, minlength=len(BINS)).tolist()
    parts = {one: entries[f"drift_{one}"].to_numpy().astype(np.float64) for one in DRIFT_PARTS}
    parts = {one: values[np.isfinite(values)] for one, values in parts.items()}
    if means := {one: round(float(values.mean()), 3) for one, values in parts.items() if len(values)}:
        facts["parts"] = means
    shapes = Counter(zip(*(entries[one].to_pylist() for one in ("num_frames", "height", "width", "fps")), strict=True))
    facts["shapes"] = [
        {"frames": t, "height": h, "width": w, "fps": fps, "clips": n} for (t, h, w, fps), n in sorted(shapes.items())
    ]
    if name != SEED_ROUND:
        rollouts = store.read(f"rollouts_{name}", ["settings", "model_digest"], ids=entries["rollout_id"].to_pylist())
        facts["models"] = _counts(rollouts["model_digest"])
        facts["samplers"] = _counts(rollouts["settings"])
        facts["scorers"] = _counts(entries["scorer"])
        rewrites = store.read(f"rewrites_{name}", ["model_id", "model_revision"], ids=entries["rewrite_id"].to_pylist())
        asked = [(one["model_id"], one["model_revision"]) for one in rewrites.to_pylist() if one["model_id"]]
        if asked:
            facts["rewrite_models"] = dict(Counter("@".join(filter(None, one)) for one in asked))
        prompts = entries.select(["prompt", "source_prompt"]).slice(0, 3)
        facts["prompts"] = plain_rows(prompts)
    facts["runs"] = [
        {key: run[key] for key in ("stage", "round", "run_id", "git_commit", "was_associated_with", "params")}
        for run in read_runs(store)
        if (run["round"] == name and run["stage"] in ("rollout", "rewrite", "score", "correct"))
        or (run["round"] == f"r{int(name[1:]) - 1}" and run["stage"] == "train")
    ]
    return json.loads(canonical_json(facts))


def _counts(column: pa.ChunkedArray | pa.Array) -> dict[str, int]:
    """How often each value is there, the most frequent first; "" for none."""
    found = Counter(one or "" for one in column.to_pylist())
    return dict(sorted(found.items(), key=lambda pair: (-pair[1], pair[0])))

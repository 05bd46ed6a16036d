"""Training use: which model saw which clip at which steps, one row for each plan and clip.

Notable: a mixture plan is the training order, so use needs no log: position p is seen at step p // batch_size.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from store.digest import id_of
from store.errors import StoreError
from store.mixture import read_plan
from store.schema import USES


def uses_table(run_records: Sequence[Mapping[str, Any]], plans: Mapping[str, Path]) -> pa.Table:
    """Rows of USES, sorted by use_id.

    run_records: rows of RUNS with their JSON columns as objects; a `train` run tells plan, model and batch size.
    plans: round -> its plan file. A plan that no run trained on has rows without a model, one sample a step.
    Raises StoreError for a plan that is missing or damaged, for one that is not the plan of its round's training, and
    for a training that does not tell its batch size.
    """
    trained = {run["round"]: run for run in run_records if run["stage"] == "train"}
    tables = [USES.empty_table()]
    for name, path in plans.items():
        plan, digest = read_plan(path)
        run = trained.get(name)
        if run is not None and run["inputs"].get("plan_digest") != digest:
            raise StoreError(f"plan {path} is not what {run['run_id']} trained on; run `dvc repro train@{name}`")
        model = run["outputs"].get("model_digest") if run else None
        batch_size = _batch_size(run) if run else 1
        tables.append(_plan_uses(plan, id_of("plan", digest), model, name, batch_size))
    return pa.concat_tables(tables).sort_by("use_id")


def _batch_size(run: Mapping[str, Any]) -> int:
    size = (run["params"].get("train") or {}).get("batch_size")
    if not isinstance(size, int) or size < 1:
        found = f"found {size!r}; expected a whole number from 1"
        raise StoreError(f"{run['run_id']} does not tell its params train.batch_size ({found}); run `dvc repro train`")
    return size


def _plan_uses(plan: pa.Table, plan_id: str, model: str | None, name: str, batch_size: int) -> pa.Table:
    ids = plan["clip_id"].combine_chunks().dictionary_encode()
    codes = ids.indices.to_numpy(zero_copy_only=False)
    order = np.argsort(codes, kind="stable")
    _, first, counts = np.unique(codes[order], return_index=True, return_counts=True)
    steps = plan["position"].to_numpy()[order] // batch_size
    firsts = order[first]  # the position at which each clip comes first
    count = len(first)
    offsets = pa.array(np.append(first, len(order)), pa.int32())
    columns: dict[str, Any] = {
        "use_id": [f"{plan_id}/{one}" for one in ids.dictionary.to_pylist()],
        "plan_id": [plan_id] * count,
        "model_digest": pa.array([model] * count, pa.string()),
        "clip_id": ids.dictionary,
        "kind": plan["kind"].take(pa.array(firsts)).combine_chunks(),
        "clip_round": plan["round"].take(pa.array(firsts)).combine_chunks(),
        "round": [name] * count,
        "steps": pa.ListArray.from_arrays(offsets, pa.array(steps, pa.int32())),
    }
    return pa.Table.from_arrays([pa.array(columns[field.name], field.type) for field in USES], schema=USES)

"""The audit of runs and training use: tables `runs` and `uses` against the plans and run records they were made of.

Notable: use is made anew from plan and training (store/uses.py) and compared row by row. A registry has neither plans
nor records; there each training is held against what its run and that of its mixture tell: plan, model, samples.
"""

import json
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from store.catalog import SEED_ROUND, read_runs, runs_table
from store.digest import id_of
from store.errors import StoreError, few
from store.finding import Finding
from store.mixture import read_plan
from store.uses import uses_table

if TYPE_CHECKING:
    from store.database import Store

REPAIR = "dvc repro catalog"
Record = dict[str, Any]


def stage_of(stage: str, name: str | None) -> str:
    """The DVC stage of a round: mix@r1, mix_r0."""
    return stage if name is None else f"{stage}_{name}" if name == SEED_ROUND else f"{stage}@{name}"


def use_findings(
    store: "Store",
    tables: Sequence[str],
    plans: Path,
    folder: Path | None,
    rounds: Set[str],
    built: Set[str],
    clips: set[str],
    broken: Mapping[str, str],
) -> Iterator[Finding]:
    """Plans, run records and the two tables made of them.

    tables: that can be read; folder: of run records, None if there is none; rounds: of the experiment, r0 too;
    built: those in the catalog, which have plan and records; clips: ids that there are; broken: damaged tables with
    their repair.
    """
    listed = {one["run_id"]: one for one in read_runs(store)} if "runs" in tables else {}
    runs = {run: one for run, one in listed.items() if one["round"] in (None, *rounds)}
    if folder is not None:
        records = {}
        for path in sorted(folder.glob("[!.]*.json")):
            try:
                one = json.loads(path.read_text(encoding="utf-8"))
                if not isinstance(one["round"], str | None) or not all(isinstance(one[k], dict) for k in _TOLD):
                    raise ValueError
                if one["round"] in (None, *rounds):
                    records[one["run_id"]] = one
            except (OSError, ValueError, KeyError, TypeError):
                words = "no run record, which is JSON of run_id, stage, round, inputs, outputs and more"
                yield Finding("error", "record", "", str(path), words, f"dvc checkout --force {path}")
        yield from _records(records, listed, folder, rounds, built, "runs" in tables)
        runs |= records
    wanted = {one["round"] for one in runs.values() if one["stage"] in ("mix", "train")}
    wanted |= {path.stem for path in plans.glob("[!.]*.parquet")} & rounds
    if folder is not None:  # a whole project, in which every round has its plan
        wanted |= built
    expected = []
    for name in sorted(wanted):
        told = yield from _plan(plans / f"{name}.parquet", list(runs.values()), folder is not None, clips, broken)
        expected += [told] * (told is not None)
    if "uses" in tables:
        found = store.read("uses")
        settled = {name for table in expected for name in table["round"].unique().to_pylist()}
        unsettled = pa.array(sorted(wanted - settled), pa.string())  # their plans are told already
        found = found.filter(pc.invert(pc.is_in(found["round"], unsettled)))
        if expected:
            yield from _differences("uses", "use_id", found, pa.concat_tables(expected))


_TOLD = ("params", "inputs", "outputs")


def _records(
    records: Mapping[str, Record],
    listed: Mapping[str, Record],
    folder: Path,
    rounds: Set[str],
    built: Set[str],
    has_table: bool,
) -> Iterator[Finding]:
    absent = {(one["stage"], one["round"]) for run, one in listed.items() if run not in records}
    there = {(one["stage"], one["round"]) for one in records.values()}
    again = absent & there  # done again since: the table is older than the record
    absent |= {(stage, name) for stage in ("mix", "train") for name in built}
    for stage, name in sorted(absent - there, key=str):
        path = folder / ("_".join(one for one in (stage, name) if one) + ".json")
        if not path.exists():
            words = f"no record of the run of {stage_of(stage, name)}"
            repair = f"dvc checkout --force {path}"
            if name is not None and name not in rounds:
                words, repair = words + ", whose round is not in the experiment", REPAIR
            yield Finding("error", "record", "", str(path), words, repair)
    if has_table and records:
        gone = {run for run, one in listed.items() if (one["stage"], one["round"]) in absent - there - again}
        try:
            expected = runs_table([*records.values(), *(listed[run] for run in gone)])
        except StoreError as error:
            yield Finding("error", "record", "", str(folder), str(error), f"dvc checkout --force {folder}")
            return
        yield from _differences("runs", "run_id", runs_table(list(listed.values())), expected)


def _plan(
    path: Path, runs: Sequence[Record], whole: bool, clips: set[str], broken: Mapping[str, str]
) -> Any:  # a generator of findings that returns a table of uses, or None
    name, back = path.stem, f"dvc checkout --force {path}"
    try:
        plan, digest = read_plan(path)
    except StoreError as error:
        yield Finding("error", "plan", "", str(path), str(error), back)
        return None
    absent = plan.filter(pc.invert(pc.is_in(plan["clip_id"], pa.array(clips, pa.string()))))
    for table in sorted(set(absent["table"].to_pylist())):
        ids = sorted(set(absent.filter(pc.equal(absent["table"], table))["clip_id"].to_pylist()))
        words = f"{len(ids)} of its clips are nowhere: {few(ids)}"
        yield Finding(
            "error", "orphan", "", str(path), words, broken.get(table) or f"dvc repro {stage_of('mix', name)}"
        )
    mixed = {one["outputs"].get("plan_digest") for one in runs if (one["stage"], one["round"]) == ("mix", name)}
    if mixed and digest not in mixed:
        yield Finding("error", "plan", "", str(path), "not the plan that its run of `mix` made", back)
        return None
    beside = path.with_suffix(".json")
    if whole or beside.exists():
        try:
            told = json.loads(beside.read_text(encoding="utf-8"))["plan_digest"]
        except (OSError, ValueError, KeyError, TypeError):
            told = None
        if told != digest:
            words = "does not tell the digest of its plan" if beside.exists() else "not there, but its plan is"
            yield Finding("error", "plan", "", str(beside), words, f"dvc checkout --force {beside}")
    try:
        return uses_table(runs, {name: path})
    except StoreError as error:
        yield Finding("error", "plan", "", str(path), str(error), f"dvc repro {stage_of('train', name)}")
    return None


def _differences(name: str, key: str, found: pa.Table, expected: pa.Table) -> Iterator[Finding]:
    """Rows of a table that was built against those that it should have."""
    there, wanted = found[key].combine_chunks(), expected[key].combine_chunks()
    what = "plans and run records" if name == "uses" else "run records"
    for ids, words in (
        (wanted.filter(pc.invert(pc.is_in(wanted, there))), f"rows of the {what} are not there"),
        (there.filter(pc.invert(pc.is_in(there, wanted))), f"rows that the {what} do not give"),
    ):
        if len(ids):
            listed = sorted(ids.to_pylist())
            yield Finding("error", name, name, listed[0], f"{len(listed)} {words}: {few(listed)}", REPAIR)
    where = pc.index_in(wanted, there)
    rows, expected = found.take(where.drop_null()), expected.filter(pc.is_valid(where))
    for column in expected.column_names:
        left, right = rows[column].combine_chunks(), expected[column].combine_chunks()
        if left.equals(right):
            continue
        pairs = zip(expected[key].to_pylist(), left.to_pylist(), right.to_pylist(), strict=True)
        ids = [one for one, is_so, should in pairs if is_so != should]
        if ids:
            yield Finding("error", name, name, ids[0], f"{column} of {len(ids)} rows differs from the {what}", REPAIR)


def registry_use_findings(store: "Store", repair: str) -> Iterator[Finding]:
    """Every training that a registry's runs tell of has its uses, as many samples as its mixture has."""
    runs = read_runs(store)
    samples = {
        one["outputs"].get("plan_digest"): one["outputs"].get("summary") for one in runs if one["stage"] == "mix"
    }
    rows = store.read("uses", ["plan_id", "model_digest", "steps"])
    rows = rows.append_column("samples", pc.list_value_length(rows["steps"])).drop_columns(["steps"])
    counts = rows.group_by(["plan_id", "model_digest"]).aggregate([("samples", "sum")]).to_pylist()
    seen = {(one["plan_id"], one["model_digest"]): one["samples_sum"] for one in counts}
    trained = set()
    for run in runs:
        plan, model = run["inputs"].get("plan_digest"), run["outputs"].get("model_digest")
        if run["stage"] != "train" or plan is None or model is None:
            continue
        trained.add(pair := (id_of("plan", plan), model))
        told = (samples.get(plan) or {}).get("num_samples")
        if pair not in seen:
            words = f"no use of {pair[0]}, on which {run['run_id']} trained it"
            yield Finding("error", "uses", "uses", model, words, repair)
        elif told is not None and seen[pair] != told:
            words = f"uses of {pair[0]} have {seen[pair]} samples, the plan has {told}"
            yield Finding("error", "uses", "uses", model, words, repair)
    for plan, model in sorted(seen.keys() - trained, key=str):
        yield Finding("error", "uses", "uses", str(model), f"no run trained it on {plan}, which uses tell of", repair)

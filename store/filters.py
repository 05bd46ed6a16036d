"""Filters by value: what `clips`, `count` and `stats` can be asked to keep to, checked against what the catalog holds.

Notable: they become the same tree as a user's own `where` (store/expression.py), quoted in one place. A value that the
catalog does not know is an error that says which there are, so that a mistyped round is not taken for an empty one.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

import lance
import pyarrow as pa

from store.catalog import SEED_ROUND, catalog_rounds
from store.errors import StoreError, few, nearest
from store.expression import Condition, Group, col, equals, render, render_where
from store.scan import scan
from store.schema import DRIFT_PARTS, NO_PART

if TYPE_CHECKING:
    from store.database import Store

KINDS = ("corrective", "seed", "all")
REVERSAL_CLASSES = ("invariant", "equivariant", "novel", "irreversible", "unknown")
PASSED = "passed"
PART_NAMES = tuple(name for directions in DRIFT_PARTS.values() for name in directions if name)  # freezing, blurring …
# Stage -> the tables whose rows its runs made, by which a clip names them.
_MADE = {
    "rollout": ("rollouts", "rollout_id"),
    "score": ("scores", "rollout_id"),
    "rewrite": ("rewrites", "rewrite_id"),
}

Values = str | Sequence[str]


class Filters(TypedDict, total=False):
    """The filters; every one given must hold.

    round, kind, run, part, reversal_class, verdict and experiment take one value or several, any of which will do.

    round: of these rounds. kind: corrective, seed or all; left out, it is corrective, for round r0 seed, and with
    `run` all. run: clips that this run made, whose rollouts, rewrites or scores it made, or that it mixed or
    trained on.
    drift: (lowest, highest), both included, None for an open end. part: this moved, in this direction, whatever else
    did: freezing, over-saturating … (PART_NAMES), or none. `where="drift_part = 'freezing'"` asks for what moved most.
    text: the prompt has all these words. reversal_class: see REVERSAL_CLASSES. verdict: "passed", or the name of a
    check that the rewrite failed. experiment: of a registry.
    where: an expression, see store/expression.py. at: "r2" asks the aggregated data set as it was after round 2.
    """

    round: Values | None
    kind: Values | None
    run: Values | None
    drift: tuple[float | None, float | None] | None
    part: Values | None
    text: str | None
    reversal_class: Values | None
    verdict: Values | None
    experiment: Values | None
    where: str | Condition | None
    at: str | None


@dataclass(frozen=True)
class Selection:
    """Checked filters: the rows of `dataset` that match `where` (a filter of the engine) and the words of `text`."""

    dataset: lance.LanceDataset
    where: str | None
    text: str | None

    def scan(self, columns: Sequence[str], **options: Any) -> pa.Table:
        """The rows, as `store.scan.scan`."""
        return scan(self.dataset, columns, self.where, text=self.text, **options)


def select(store: "Store", filters: Filters, *others: Condition) -> Selection:
    """The filters and other conditions as one selection.

    Raises StoreError for a value or column that the catalog does not know, TypeError for a filter that is none.
    """
    for name in filters:
        if name not in Filters.__annotations__:
            raise TypeError(f"no filter is called {name!r}{nearest(name, Filters.__annotations__)}")
    where, text = filters.get("where"), filters.get("text")
    if text is not None and (not isinstance(text, str) or not text.strip()):
        raise StoreError(f"text takes words of the prompt; got {text!r}")
    rounds = _values(filters, "round")
    conditions = [*others, *_round(store, rounds, filters.get("at")), *_kind(filters, rounds)]
    # A registry has no tags; there `at` is a condition on the round.
    dataset = store.open("catalog", None if store.is_registry else filters.get("at"))
    if runs := _values(filters, "run"):
        conditions.append(Group("OR", tuple(_of_run(store, one) for one in runs)))
    conditions += _drift(filters.get("drift"))
    if parts := _values(filters, "part"):
        conditions.append(_moved(_known("part of the drift", parts, [*PART_NAMES, NO_PART])))
    if classes := _values(filters, "reversal_class"):
        conditions.append(col("reversal_class").is_in(_known("reversal class", classes, REVERSAL_CLASSES)))
    if verdicts := _values(filters, "verdict"):
        conditions.append(_verdict(store, verdicts))
    if experiments := _values(filters, "experiment"):
        if not store.is_registry:
            raise StoreError(
                f"experiment tells apart what a registry holds; {store.uri} is one project's store (`bagger register` "
                "puts its rounds into a registry, which --store URI asks)"
            )
        conditions.append(col("experiment").is_in(_known("experiment", experiments, _distinct(dataset, "experiment"))))
    parts_of_where = [render(one, dataset.schema) for one in conditions]
    if where is not None:
        parts_of_where.append(render_where(where, dataset.schema))
    return Selection(dataset, " AND ".join(parts_of_where) or None, text)


def catalog_rounds_of(store: "Store") -> list[str]:
    """The catalog's rounds in order, of a project or of a registry."""
    if store.is_registry:
        return sorted(_distinct(store.open("catalog"), "round"), key=round_number)
    return catalog_rounds(store)


def round_number(name: str) -> tuple[int, str]:
    """By which rounds are in order: r2 before r10."""
    return (int(name[1:]) if name[:1] == "r" and name[1:].isdecimal() else -1, name)


def _values(filters: Filters, name: str) -> list[str]:
    """A filter's one value or several, as a list; empty if there is no such filter."""
    value = filters.get(name)
    if value is None:
        return []
    values = list(value) if isinstance(value, Iterable) and not isinstance(value, str) else [value]
    if not values:
        raise StoreError(f"{name} is an empty list; leave it out, or name what is wanted")
    for one in values:
        if not isinstance(one, str):
            raise StoreError(f"{name} takes texts; got {one!r}")
    return list(dict.fromkeys(map(str, values)))


def _known(what: str, values: Sequence[str], known: Sequence[str]) -> Sequence[str]:
    for one in values:
        if one not in known:
            raise StoreError(
                f"no {what} is called {one!r}{nearest(one, known)}; there are {', '.join(known) or 'none'}"
            )
    return values


def _distinct(dataset: lance.LanceDataset, column: str) -> list[str]:
    return sorted(one for one in scan(dataset, [column])[column].unique().to_pylist() if one is not None)


def _round(store: "Store", rounds: list[str], at: str | None) -> list[Condition]:
    if not rounds and at is None:
        return []
    known = catalog_rounds_of(store)
    if at is not None and at not in known:
        raise StoreError(f"no tag {at!r} in the catalog; it holds {', '.join(known)}")
    within = known[: known.index(at) + 1] if at is not None else known
    for one in rounds:
        if one not in within:
            where = f"the data set as of {at}" if one in known else "the catalog"
            raise StoreError(f"no round {one!r} in {where}; it holds {', '.join(within)}")
    if rounds:
        return [col("round").is_in(rounds)]
    return [col("round").is_in(within)] if store.is_registry else []


def _kind(filters: Filters, rounds: list[str]) -> list[Condition]:
    kinds = _values(filters, "kind")
    if not kinds:
        if "run" in filters and filters["run"] is not None or (len(rounds) > 1 and SEED_ROUND in rounds):
            return []
        kinds = ["seed" if rounds == [SEED_ROUND] else "corrective"]
    for one in kinds:
        if one not in KINDS:
            raise StoreError(f"no kind of clip is called {one!r}{nearest(one, KINDS)}; kinds: {', '.join(KINDS)}")
    return [] if "all" in kinds else [col("kind").is_in(kinds)]


def _drift(drift: Any) -> list[Condition]:
    if drift is None:
        return []
    try:
        low, high = drift
    except (TypeError, ValueError):
        raise StoreError(f"drift takes (lowest, highest), None for an open end; got {drift!r}") from None
    if isinstance(low, str) or isinstance(high, str):
        raise StoreError(f"drift takes two numbers, None for an open end; got {drift!r}")
    if low is not None and high is not None and low > high:
        raise StoreError(f"drift is to be at least {low} and at most {high}, which nothing is; exchange them")
    if low is None and high is None:
        return [~col("drift").is_null()]  # what has a drift at all
    return [*([] if low is None else [col("drift") >= low]), *([] if high is None else [col("drift") <= high])]


def _moved(names: Sequence[str]) -> Condition:
    """Clips of which one of these moved; `drift_parts` names all that did in one text."""
    parts, each = col("drift_parts"), []
    for one in names:
        if one == NO_PART:
            each.append(col("drift_part") == NO_PART)
        else:
            each += [parts == one, *(parts.like(like) for like in (f"{one},%", f"%,{one}", f"%,{one},%"))]
    return Group("OR", tuple(each))


def _of_run(store: "Store", run_id: str) -> Condition:
    """Clips that a run made, whose rollouts, rewrites or scores it made, or that it mixed or trained on."""
    columns = ["run_id", "stage", "round", "used", "generated"]
    found = store.read("runs", columns, equals("run_id", run_id)).to_pylist() if store.has("runs") else []
    if not found:
        makers = _distinct(store.open("catalog"), "was_generated_by")
        if run_id in makers:
            return col("was_generated_by") == run_id
        runs = store.read("runs", ["run_id"])["run_id"].to_pylist() if store.has("runs") else makers
        raise StoreError(f"no run {run_id!r}{nearest(run_id, runs)}; runs that made clips: {few(makers)}")
    run = found[0]
    if run["stage"] in ("seed", "correct"):
        return col("was_generated_by") == run_id
    if run["stage"] in _MADE:
        base, key = _MADE[run["stage"]]
        name = base if store.is_registry else f"{base}_{run['round']}"
        made = col(key).is_in(_ids(store, name, key, equals("was_generated_by", run_id)))
        return made & (col("round") == run["round"])  # another round may have made the same rewrite
    if run["stage"] in ("mix", "train"):
        plans = [one for one in [*run["used"], *run["generated"]] if one.startswith("plan-")]
        rows = render(col("plan_id").is_in(plans), store.open("uses").schema)
        return col("clip_id").is_in(_ids(store, "uses", "clip_id", rows))
    raise StoreError(f"{run_id} is a run of stage {run['stage']}, which neither makes clips nor trains on them")


def _ids(store: "Store", name: str, column: str, where: str) -> list[str]:
    return sorted(set(store.read(name, [column], where)[column].to_pylist()))


def _verdict(store: "Store", wanted: Sequence[str]) -> Condition:
    """Rewrites that passed, or that failed one of the checks wanted; a verdict names all failed checks in one text."""
    held = _distinct(store.open("catalog"), "verdict")
    failed = {check for one in held for check in one.split(",")} - {PASSED}
    if set(wanted) - failed - {PASSED}:
        # A check that no rewrite failed is in no verdict.
        names = {
            check["name"]
            for name in store.tables("rewrites")
            for verdicts in store.read(name, ["verdicts"])["verdicts"].unique().to_pylist()
            for check in json.loads(verdicts)
        }
        _known("verdict", wanted, [PASSED, *sorted(failed | names)])
    return col("verdict").is_in(one for one in held if set(one.split(",")) & set(wanted))

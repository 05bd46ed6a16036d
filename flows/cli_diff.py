"""`bagger diff`: what changed between two states of the data, and how the drift is distributed in each."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows import paths
from flows.console import CommandError, Json, StoreUri, command_group, open_store, print_json, print_table
from store.errors import printable

if TYPE_CHECKING:
    import pyarrow as pa

    from store import Store
    from store.diff import Diff

DIFFERENT_STATUS = 3  # 1 is an error, 2 a command line that cannot be read
LISTED = 10  # clips that a terminal shows
NOW = "."
_TAG = re.compile(r"(?P<rev>.*):(?P<tag>r[0-9]+)")
_ROUND = re.compile(r"(?P<experiment>.+)/(?P<tag>r[0-9]+)")
_BARS = "▁▂▃▄▅▆▇█"
_PLAIN_BARS = ".:-=+*#%"  # where the terminal has no blocks

app = command_group()


@app.command(
    epilog="""\b
Examples:
  bagger diff r1 r3                     what rounds r2 and r3 added to the data set
  bagger diff HEAD                      the last commit's data against those of now
  bagger diff HEAD~1 HEAD --only changed --sort -drift_change
  bagger diff main:r2 my-branch:r2      the data set after round r2, in two branches
  bagger diff HEAD . --json | python -m json.tool
  bagger diff HEAD~1 HEAD --summary --json      the distributions, as rows
  bagger diff baseline/r2 warm/r2 --store s3://team/registry
  bagger diff HEAD . --exit-code || echo "the data changed"

\b
A and B are each one of
  r2          a tag of the catalog: the data set after round r2, as the store has it now
  REV         a git revision (commit, branch, tag, HEAD~1, DVC experiment): the newest recorded there
  REV:r2      the tag r2 of that revision
  .           the newest that the store has now; so is B when it is left out
A name that is both a tag of the catalog and a branch means the tag; refs/heads/r2 is the branch.
In a registry: EXPERIMENT (all its rounds) or EXPERIMENT/r2 (its rounds up to r2)."""
)
def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="The state before: a tag, a git revision or REV:TAG.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The state after; left out, what the store has now.")] = NOW,
    only: Annotated[str | None, typer.Option(help="List only clips that were added, removed or changed.")] = None,
    sort: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN", help="Order of the clips; -COLUMN: descending; else what changed most is first."
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(metavar="N", help=f"At most so many clips; else {LISTED}, in JSON all.")
    ] = None,
    summary: Annotated[
        bool, typer.Option("--summary", help="Counts and distributions, no clips; with --json as rows.")
    ] = False,
    exit_code: Annotated[
        bool, typer.Option("--exit-code", help=f"End with status {DIFFERENT_STATUS} if A and B differ, else 0.")
    ] = False,
    as_json: Json = False,
    store: StoreUri = str(paths.STORE),
) -> None:
    """Compare two states of the data, clip by clip.

    Clips added, removed and changed, and their drift side by side.

    A changed clip has the same id but another score, prompt, gates or other value. Nothing is checked out: the catalog
    of an earlier revision comes from DVC's cache or remote and stays in .work/revisions.

    With --json one object a clip; a changed clip has a.COLUMN and b.COLUMN for each column that changed. With --summary
    --json one object for each distribution (`row`: distribution) and bin (`row`: histogram), after one of counts.
    """
    opened = open_store(store)
    state_a, state_b = _state(opened, store, a), _state(opened, store, b)
    found = _compare(state_a, state_b)
    # Asked before anything is printed: a wrong column is an error and no half of an answer.
    clips = found.clips(only, sort, limit if limit is not None or as_json else LISTED)
    if as_json:
        print_json(_summary_rows(found) if summary else _clip_rows(found, clips))
    else:
        _print(found, state_a, state_b, only, None if summary else clips)
    if exit_code and not found.empty:
        raise typer.Exit(DIFFERENT_STATUS)


@dataclass(frozen=True)
class _State:
    """What A or B means: a store, and a tag or an experiment of it."""

    store: Store
    at: str | None
    experiment: str | None
    label: str


def _state(store: Store, uri: str, name: str) -> _State:
    """Raises RevisionError or StoreError if the name is neither a tag nor a revision."""
    from store.catalog import catalog_rounds
    from store.errors import StoreError
    from store.remote import is_remote

    if is_remote(uri) or _is_registry(store):
        if name == NOW:
            return _State(store, None, None, NOW)  # refused by name: which experiment?
        match = _ROUND.fullmatch(name)
        experiment, at = (match["experiment"], match["tag"]) if match else (name, None)
        return _State(store, at, experiment, printable(name))
    if name == NOW:
        return _State(store, None, None, "now")
    if not name:
        raise CommandError("a name is empty; allowed: a tag (r1), a git revision, REV:r1, or . for the store as it is")
    match = _TAG.fullmatch(name)
    rev, at = (match["rev"], match["tag"]) if match else (name, None)
    if rev in ("", NOW):
        return _State(store, at, None, printable(name))
    tags: list[str] | None = None
    no_catalog: StoreError | None = None
    try:
        tags = catalog_rounds(store)
    except StoreError as error:
        no_catalog = error
    if at is None and tags and name in tags:
        return _State(store, name, None, name)
    from flows.revisions import RevisionError

    try:
        earlier = open_store(uri, rev)
    except RevisionError as error:
        if at is not None or not re.fullmatch(r"r[0-9]+", name):
            raise
        if no_catalog is not None:
            raise no_catalog from None
        raise CommandError(f"no tag {name!r} in the catalog, which has {', '.join(tags or ())}; and {error}") from None
    return _State(earlier, at, None, printable(name))


def _is_registry(store: Store) -> bool:
    from store.errors import StoreError

    with contextlib.suppress(StoreError):  # the catalog is not here now; a revision may have it
        return store.is_registry
    return False


def _compare(a: _State, b: _State) -> Diff:
    from store.diff import diff as compare

    return compare(a.store, b.store, a.at, b.at, a.experiment, b.experiment)


# ------------------------------------------------------------------------------------------------------------- as rows


def _clip_rows(found: Diff, clips: pa.Table) -> list[dict[str, Any]]:
    """The listed clips as flat objects."""
    from store.query import plain_rows

    values = {one["clip_id"]: one for one in plain_rows(found.changed)}
    rows = plain_rows(clips)
    for row in rows:
        for column in (row["columns"] or "").split():
            row |= {f"{side}.{column}": values[row["clip_id"]][f"{side}.{column}"] for side in "ab"}
    return rows


def _summary_rows(found: Diff) -> list[dict[str, Any]]:
    return [
        {"row": "counts", **found.counts},
        *({"row": "distribution", **one} for one in found.distribution.to_pylist()),
        *({"row": "histogram", **one} for one in found.histogram.to_pylist()),
    ]


# -------------------------------------------------------------------------------------------------------- for a person


def _print(found: Diff, a: _State, b: _State, only: str | None, clips: pa.Table | None) -> None:
    counts = found.counts
    print(f"A  {a.label}: {counts['a']} clips")
    print(f"B  {b.label}: {counts['b']} clips")
    kinds = ("added", "removed", "changed", "unchanged")
    print(", ".join(f"{counts[kind]} {kind}" for kind in kinds))
    if found.empty:
        return
    print("\nDrift and its parts (histograms: low to high, over a range common to all sides)")
    print_table(_part_rows(found), ("part", "side", "clips", "mean", "p5", "median", "p95", "histogram"))
    for by in ("round", "class"):
        if rows := _group_rows(found, by):
            print(
                f"\nDrift by {by if by == 'round' else 'reversal class'}: clips, and the median of those with a score"
            )
            print_table(rows, tuple(rows[0]))
    if clips is None:
        return
    total = sum(counts[kind] for kind in ("added", "removed", "changed") if only in (None, kind))
    more = f", {clips.num_rows} of {total}; --limit shows more" if clips.num_rows < total else ""
    print(f"\nClips{'' if only is None else ' ' + only}{more}")
    if clips.num_rows:
        from store.query import plain_rows

        print_table(plain_rows(clips), _clip_columns(clips))


def _clip_columns(clips: pa.Table) -> tuple[str, ...]:
    """Columns in which some clip has something to say."""
    names = ("clip_id", "change", "round", "drift_a", "drift_b", "drift_change", "columns", "prompt")
    return tuple(name for name in names if clips[name].null_count < clips.num_rows or name == "change")


def _part_rows(found: Diff) -> list[dict[str, Any]]:
    bars = _bars_for(sys.stdout.encoding)
    bins = found.histogram.to_pylist()
    rows = []
    for one in found.distribution.to_pylist():
        if one["by"] == "all" and one["scored"]:
            counts = [bin[one["side"]] for bin in bins if bin["part"] == one["part"]]
            rows.append(one | {"clips": one["scored"], "histogram": _sparkline(counts, bars)})
    return rows


def _group_rows(found: Diff, by: str) -> list[dict[str, Any]]:
    """A row a group: how many clips, and their median drift, on each side that has any."""
    cells = {
        (one["group"], one["side"]): one
        for one in found.distribution.to_pylist()
        if one["by"] == by and one["part"] == "drift"
    }
    groups = list(dict.fromkeys(group for group, _ in cells))
    groups.sort(key=lambda name: (len(name), name) if by == "round" else (0, name))
    sides = [side for side in ("A", "B", "added", "removed") if any(one == side for _, one in cells)]
    rows = []
    for group in groups:
        row: dict[str, Any] = {by: group}
        for side in sides:
            cell = cells.get((group, side), {"clips": 0, "median": None})
            row |= {side: cell["clips"], f"{side} median": cell["median"]}
        rows.append(row)
    return rows


def _bars_for(encoding: str | None) -> str:
    try:
        _BARS.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return _PLAIN_BARS
    return _BARS


def _sparkline(counts: Sequence[int], bars: str) -> str:
    """One letter a bin, from low to high; the highest bin has the highest bar, a bin of none a blank."""
    top = max(counts, default=0)
    return "".join(bars[(len(bars) * count - 1) // top] if count else " " for count in counts).rstrip()

"""`bagger mix`: what a round would train on, before it does.

Notable: the plan is made here as stage `mix` makes it, from the sealed tables and params.yaml, and written nowhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows import paths
from flows.command import say
from flows.console import CommandError, command_group, print_json, print_table
from store.errors import StoreError, nearest, printable

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from flows.params import Params
    from store.mixture import Shares

DRAWN = ("round", "kind", "samples", "share", "clips", "of", "least", "mean", "most", "left out")
DRIFT = {"min": "min", "q10": "10 %", "median": "median", "q90": "90 %", "max": "max", "mean": "mean"}
EDGES = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # of the histogram's bins, in units of what real clips do; no end
BAR = 40  # characters of the longest bar

app = command_group()


@app.command(
    epilog="""\b
Examples:
  bagger mix                              every round whose clips are there
  bagger mix r2                           shares, repeats and drift of what r2 trains on
  bagger mix r2 --corrective 0.3          what another share would give; changes nothing
  bagger mix r2 --corrective r1=0.1,r2=0.3      a share of its own for each round
  bagger mix r3 --corrective uniform --json     of the aggregated set, for machines"""
)
def mix(
    rounds: Annotated[
        list[str] | None, typer.Argument(metavar="ROUND", help="r0, r1 …; none: all.", show_default=False)
    ] = None,
    show: Annotated[
        bool, typer.Option("--show", help="Print it, which is all this command does.", show_default=False)
    ] = True,
    corrective: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE",
            help="Instead of the share of corrective clips in params.yaml: a number from 0 to 1, uniform, or shares by "
            "round as r1=0.1,r2=0.3.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array, an object a round.")] = False,
) -> None:
    """Show what a round trains on: shares, clips, repeats, drift.

    The plan is made from params.yaml and the sealed tables of this project, before anything trains and whether or not
    stage `mix` has run; nothing is written. If the plan that is there is another one, it says so.

    least, mean, most: how often a clip is drawn. Drift is that of the samples: a clip counts as often as it is drawn.
    """
    from flows.params import load_params

    params = load_params()
    share = None if corrective is None else _share(corrective)
    shown = []
    for name in _rounds(params, rounds, share):
        if absent := _absent(params, name):
            said = f"{name}: there is no plan without {', '.join(absent)}; make {'it' if len(absent) == 1 else 'them'} "
            said += f"with `dvc repro {' '.join(absent.values())}`"
            if rounds:
                raise CommandError(said)
            say(said)
            continue
        shown.append(_shown(params, name, share))
    if as_json:
        print_json({key: value for key, value in one.items() if key != "standing"} for one in shown)
        return
    for number, one in enumerate(shown):
        if number:
            print()
        _print(one)


def _share(text: str) -> Shares:
    """A share as the command line has it: 0.3, uniform, r1=0.1,r2=0.3."""
    if text == "uniform":
        return "uniform"
    pairs = [part.rpartition("=") for part in text.split(",")]
    shares = {name.strip(): _number(value) for name, _, value in pairs}
    if len(shares) < len(pairs) or not all(0 <= one <= 1 for one in shares.values()):
        raise CommandError(
            f"--corrective {text!r}: expected a number from 0 to 1, or uniform, or shares by round as r1=0.1,r2=0.3"
        )
    return shares[""] if list(shares) == [""] else shares


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _rounds(params: Params, given: list[str] | None, share: Shares | None) -> list[str]:
    """The rounds asked for, else all that can have the share."""
    from flows.params import check_shares

    known = ["r0", *params.round_names]
    for one in given or ():
        if one not in known:
            raise CommandError(f"no round {one!r} in params.yaml{nearest(one, known)}; it has {', '.join(known)}")
        if one == "r0" and share is not None:
            raise CommandError("--corrective: r0 trains on seed clips alone; name another round")
    if share is None:
        return given or known
    named = [int(one[1:]) for one in share if one in known] if isinstance(share, Mapping) else []
    asked = given or [one for one in params.round_names if int(one[1:]) >= max(named, default=1)]
    for one in asked:
        try:
            check_shares(f"{one}: --corrective", share, one, params.mixture.order)
        except ValueError as error:
            raise CommandError(str(error)) from None
    return asked


def _absent(params: Params, name: str) -> dict[str, str]:
    """Tables that a plan is made of and that are not there, and the stages that make them."""
    from store.schema import table_stage
    from store.table import table_names

    wanted = ["seed", *(f"{base}_{k}" for k in params.rounds_until(name) for base in ("clips", "scores", "rewrites"))]
    there = table_names(paths.STORE)
    return {one: str(table_stage(one)) for one in wanted if one not in there}


def _shown(params: Params, name: str, share: Shares | None) -> dict[str, Any]:
    """All that is told of a round."""
    from flows.mix import facts_of, known_drift, plan_of, pools_of, share_of
    from store.mixture import draws, plan_digest

    asked = share_of(params, name) if share is None else share
    pools = pools_of(params, name)
    try:
        plan = plan_of(params, name, pools, asked)
    except StoreError as error:
        raise CommandError(f"{name}: {error}") from None
    state, standing = _standing(params, name, plan, share is not None)
    values = {k: known_drift(counts, pools.drift) for k, counts in draws(plan).items() if k != "r0"}
    return {
        "round": name,
        "asked": asked,
        "order": params.mixture.order,
        "plan_digest": plan_digest(plan),
        "file": state,
        "standing": standing,
        **facts_of(plan, pools),
        "histogram": _histogram(values),
    }


def _standing(params: Params, name: str, plan: pa.Table, tried: bool) -> tuple[str, str]:
    """Whether the plan's file is this plan (absent, same, other; older: this one, of older tables), and in words."""
    from flows.mix import tables_of
    from store.mixture import plan_digest, plan_stage, plan_tables, read_plan

    path = paths.plan(name)
    mend = f"`dvc repro {plan_stage(path)}`"
    if tried:
        mend = f"set rounds.{name}.corrective in {_params_file()}, and {mend}"
    if not path.exists():
        return "absent", f"{path} is not there yet; {mend} makes it" if not tried else f"to have it, {mend}"
    if read_plan(path)[1] != plan_digest(plan):
        return "other", f"{path} is another plan; {mend} makes this one" if not tried else f"to have it, {mend}"
    was, now = plan_tables(path), tables_of(params, name)
    if changed := sorted(one for one in was if was[one] != now.get(one)):
        return "older", f"{path} is this plan, but was made when {', '.join(changed)} held something else; {mend}"
    return "same", f"{path} is this plan"


def _params_file() -> Path:
    from flows.params import PARAMS_FILE

    return PARAMS_FILE


def _histogram(values: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Bins of drift, from the first to the last that has samples: from, to (None: no end), samples, and by round."""
    import numpy as np

    counts = {k: np.histogram(one, [*EDGES, np.inf])[0].tolist() for k, one in values.items()}
    bins = [
        {"from": low, "to": high, "samples": sum(by[number] for by in counts.values()),
         "by_round": {k: by[number] for k, by in counts.items()}}
        for number, (low, high) in enumerate(zip(EDGES, [*EDGES[1:], None], strict=True))
    ]  # fmt: skip
    filled = [number for number, one in enumerate(bins) if one["samples"]]
    return bins[filled[0] : filled[-1] + 1] if filled else []


def _print(one: dict[str, Any]) -> None:
    asked = one["asked"]
    told = ", ".join(f"{k} {share:g}" for k, share in asked.items()) if isinstance(asked, dict) else asked
    print(
        f"{one['round']}: {one['num_samples']} samples, {one['corrective']:.2%} corrective (asked for: {told}; order: "
        f"{one['order']})"
    )
    print(one["standing"])
    lost = {k: ", ".join(f"{count} by {why}" for why, count in by.items()) for k, by in one.get("left_out", {}).items()}
    rows = [
        {"round": k, "kind": "seed" if k == "r0" else "corrective", "samples": part["samples"], "share": part["share"],
         "clips": part["clips"], "of": part["pool"], "least": part["least_repeats"], "mean": part["mean_repeats"],
         "most": part["most_repeats"], "left out": lost.get(k)}
        for k, part in one["rounds"].items()
    ]  # fmt: skip
    print_table(rows, DRAWN)
    known = {k: part["drift"] for k, part in one["rounds"].items() if "mean" in part.get("drift", ())}
    if not known:
        return
    print("\ndrift of the corrective samples; 1 is what real clips do")
    drift = [
        {"round": k, **{shown: part[key] for key, shown in DRIFT.items()}, "unknown": part["unknown"]}
        for k, part in known.items()
    ]
    print_table(drift, ["round", *DRIFT.values(), "unknown"])
    print()
    most = max(bar["samples"] for bar in one["histogram"])
    for bar in one["histogram"]:
        end = "or more" if bar["to"] is None else f"to {bar['to']:g}"
        width = -(-BAR * bar["samples"] // most)
        print(printable(f"{bar['from']:>4g} {end:<8} {bar['samples']:>7}  {'#' * width}").rstrip())

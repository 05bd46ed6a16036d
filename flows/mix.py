"""Stages `mix_r0` and `mix@rK`: the whole training order of a round, written down before anything trains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from flows import paths
from flows.command import command, say
from flows.params import Params
from flows.stage import Stage, write_json
from model.rng import derive_seed
from store.mixture import Shares, draws, expand, summary, write_plan
from store.pools import Pools, read_pools
from store.table import read_manifest

# What of params.mixture decides a plan, and need not be told of a run while it decides nothing.
DEFAULTS = {"where": None, "max_clips": None, "order": "mixed"}
QUANTILES = {"min": 0.0, "q10": 0.1, "median": 0.5, "q90": 0.9, "max": 1.0}


def main(params: Params, round: str) -> None:
    corrective, samples = share_of(params, round), params.steps_of(round) * params.train.batch_size
    tables, pools = tables_of(params, round), pools_of(params, round)
    # Of the scores only what is left out counts: other scores of the same clips are no reason to train anew.
    left_out = {k: by["gate"] for k, by in pools.left_out.items() if "gate" in by}
    filtered = {k: by["where"] for k, by in pools.left_out.items() if "where" in by}
    told = {key: value for key, value in params.mixture if key in DEFAULTS and value != DEFAULTS[key]}
    with Stage(
        "mix", round,
        params={"random_seed": params.random_seed, "corrective": corrective, "samples": samples}
        | ({"left_out": left_out} if left_out else {})
        | ({"mixture": told} if told and round != "r0" else {})
        | ({"filtered": filtered} if filtered else {}),
        inputs=tables,
    ) as stage:  # fmt: skip
        for k, by in pools.left_out.items():  # before the plan, which may find too few
            for reason, clips in by.items():
                say(f"mix-{round}: {len(clips)} corrective clips of {k} are left out: {WHY[reason]}")
        plan = plan_of(params, round, pools, corrective)
        digest = write_plan(plan, paths.plan(round), tables)
        scores = digests_of([f"scores_{k}" for k in params.rounds_until(round)])
        facts = {"plan_digest": digest, "tables": tables, "scores": scores, **facts_of(plan, pools)}
        write_json(paths.plan_summary(round), facts)  # with the scores' digests, for the next round reads them too
        made = summary(plan)
        stage.outputs = {"plan_digest": digest, "samples": made["num_samples"], "summary": made}
        shares = ", ".join(f"{k} {part['share']:.0%} ({part['clips']} clips)" for k, part in made["rounds"].items())
        say(f"mix-{round}: {made['num_samples']} samples, {made['corrective']:.0%} corrective: {shares}")


UNDRAWN = {"samples": 0, "share": 0.0, "clips": 0, "least_repeats": 0, "mean_repeats": 0.0, "most_repeats": 0}
WHY = {
    "gate": "their rollouts failed a hard gate",
    "where": "mixture.where does not hold",
    "max_clips": "mixture.max_clips are enough",
}


def share_of(params: Params, round: str) -> Shares:
    """The share of corrective clips that params.yaml gives a round; r0 has none."""
    return params.round(round).corrective if params.rounds_until(round) else 0.0


def tables_of(params: Params, round: str) -> dict[str, str]:
    """Digests of the sealed tables that hold the clips a round may draw, by name."""
    return digests_of(["seed", *(f"clips_{k}" for k in params.rounds_until(round))])


def digests_of(names: Iterable[str]) -> dict[str, str]:
    """Digests of sealed tables by name, from their manifests."""
    return {name: read_manifest(paths.manifest(name)).digest for name in names}


def pools_of(params: Params, round: str) -> Pools:
    """The clips that a round may draw. Which of too many take part is the same in every round."""
    mixture = params.mixture
    seed = derive_seed("mix", params.random_seed, "max_clips")
    return read_pools(paths.STORE, params.rounds_until(round), mixture.where, mixture.max_clips, seed)


def plan_of(params: Params, round: str, pools: Pools, corrective: Shares) -> pa.Table:
    """The plan of a round, for a share that need not be that of params.yaml. Raises StoreError if it cannot be."""
    samples = params.steps_of(round) * params.train.batch_size
    seed = derive_seed("mix", params.random_seed, round)
    return expand(pools.pools, corrective, samples, seed, params.mixture.order, params.mixture.max_repeats)


def facts_of(plan: pa.Table, pools: Pools) -> dict[str, Any]:
    """What a plan amounts to: `summary`, of every round that has a pool, and more of each.

    pool: clips that may be drawn; drift: quantiles and mean over the draws (a clip counts as often as it is drawn), and
    how many of them have no drift; left_out: corrective clips by the reason why they may not be drawn.
    """
    made, drawn = summary(plan), draws(plan)
    rounds = {}
    for pool in pools.pools:
        part = made["rounds"].get(pool.round, UNDRAWN) | {"pool": len(pool.clip_ids)}
        rounds[pool.round] = part | ({} if pool.kind == "seed" else {"drift": drift_of(drawn[pool.round], pools.drift)})
    made["rounds"] = rounds
    left_out = {k: {reason: len(clips) for reason, clips in by.items()} for k, by in pools.left_out.items()}
    return made | ({"left_out": left_out} if left_out else {})


def drift_of(drawn: Mapping[str, int], drift: Mapping[str, float | None]) -> dict[str, float | int]:
    """Quantiles (linear between values) and mean of the drift of draws; `unknown`: draws without one."""
    values = known_drift(drawn, drift)
    found: dict[str, float | int] = {"unknown": sum(drawn.values()) - len(values)}
    if len(values):
        found |= {name: float(np.quantile(values, share)) for name, share in QUANTILES.items()}
        found["mean"] = float(values.mean())
    return found


def known_drift(drawn: Mapping[str, int], drift: Mapping[str, float | None]) -> np.ndarray:
    """float64 [draws]: the drift of every draw that has one, ascending."""
    pairs = [(value, times) for one, times in drawn.items() if (value := drift[one]) is not None]
    return np.sort(np.repeat([value for value, _ in pairs], [times for _, times in pairs]).astype(np.float64))


if __name__ == "__main__":
    command(main)

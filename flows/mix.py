"""Stages `mix_r0` and `mix@rK`: the whole training order of a round, written down before anything trains."""

from __future__ import annotations

from typing import Literal

from flows import paths
from flows.command import command, say
from flows.params import Params
from flows.stage import Stage, write_json
from model.rng import derive_seed
from store.mixture import Pool, expand, summary, write_plan
from store.table import read_manifest, read_table


def main(params: Params, round: str) -> None:
    rounds = params.rounds_until(round)
    corrective: float | Literal["uniform"] = params.round(round).corrective if rounds else 0.0
    tables = {"seed": read_manifest(paths.manifest("seed")).digest}
    tables |= {f"clips_{k}": read_manifest(paths.manifest(f"clips_{k}")).digest for k in rounds}
    samples = params.steps_of(round) * params.train.batch_size
    # Of the scores only what is left out counts: other scores of the same clips are no reason to train anew.
    left_out = {k: ids for k in rounds if (ids := gated(k))}
    with Stage(
        "mix", round,
        params={"random_seed": params.random_seed, "corrective": corrective, "samples": samples}
        | ({"left_out": left_out} if left_out else {}),
        inputs=tables,
    ) as stage:  # fmt: skip
        seed = read_table(paths.STORE, "seed", ["clip_id"], "split = 'train'")["clip_id"].to_pylist()
        for k, ids in left_out.items():  # before the plan, which may find too few
            say(f"mix-{round}: {len(ids)} corrective clips of {k} are left out: their rollouts failed a hard gate")
        pools = [Pool("seed", "r0", "seed", seed)]
        for k in rounds:
            ids = read_table(paths.STORE, f"clips_{k}", ["clip_id"])["clip_id"].to_pylist()
            pools.append(Pool("corrective", k, f"clips_{k}", [one for one in ids if one not in left_out.get(k, ())]))
        plan = expand(pools, corrective, samples, derive_seed("mix", params.random_seed, round))
        digest = write_plan(plan, paths.plan(round))
        made = summary(plan)
        counts = {"left_out": {k: len(ids) for k, ids in left_out.items()}} if left_out else {}
        write_json(paths.plan_summary(round), {"plan_digest": digest, "tables": tables, **made, **counts})
        stage.outputs = {"plan_digest": digest, "samples": made["num_samples"], "summary": made}
        shares = ", ".join(f"{k} {part['share']:.0%} ({part['clips']} clips)" for k, part in made["rounds"].items())
        say(f"mix-{round}: {made['num_samples']} samples, {made['corrective']:.0%} corrective: {shares}")


def gated(round: str) -> list[str]:
    """The corrective clips of a round whose rollouts failed a hard gate (model/drift.py), the only ones left out."""
    failed = set(read_table(paths.STORE, f"scores_{round}", ["rollout_id"], "gates != ''")["rollout_id"].to_pylist())
    clips = read_table(paths.STORE, f"clips_{round}", ["clip_id", "rollout_id"]).to_pylist() if failed else []
    return sorted(clip["clip_id"] for clip in clips if clip["rollout_id"] in failed)


if __name__ == "__main__":
    command(main)

import json
from pathlib import Path

import numpy as np
import pytest

from flows import mix, paths
from flows.params import Params, load_params
from store import Store
from store.catalog import build_catalog
from store.errors import StoreError
from store.mixture import draws, plan_digest, plan_tables, read_plan
from store.pools import read_pools
from store.schema import table_schema
from store.table import WorkingTable, read_manifest
from tests.conftest import clip_rows, rewrite_rows, score_rows, seed_rows
from tests.flows.heldout import ROOT


def seal(name: str, rows: list[dict]) -> None:
    schema, key = table_schema(name)
    table = WorkingTable(Path("work"), name, schema, key)
    table.upsert(rows)
    table.seal(paths.STORE, paths.manifest(name), [row[key] for row in rows])


@pytest.fixture
def project(tmp_path, monkeypatch) -> Params:
    """The tiny store's tables of two rounds, and params of the smoke test."""
    monkeypatch.chdir(tmp_path)
    seal("seed", seed_rows())
    for name in ("r1", "r2"):
        seal(f"scores_{name}", score_rows(name))
        seal(f"rewrites_{name}", rewrite_rows(name))
        seal(f"clips_{name}", clip_rows(name, "model-0"))
    return load_params(ROOT / "tests" / "smoke.yaml")


def with_mixture(params: Params, **knobs) -> Params:
    return params.model_copy(update={"mixture": params.mixture.model_copy(update=knobs)})


def with_share(params: Params, round: str, corrective) -> Params:
    rounds = {**params.rounds, round: params.round(round).model_copy(update={"corrective": corrective})}
    return params.model_copy(update={"rounds": rounds})


def record(round: str) -> dict:
    return json.loads(Path(f"data/runs/mix_{round}.json").read_text())


# ---------------------------------------------------------------- which clips


def test_clips_of_rollouts_that_failed_a_gate_are_left_out_and_no_others(project):
    scores = score_rows("r1")
    scores[0]["drift"] = 1e6  # much drift is no reason
    scores[1]["gates"] = "black,clipped"
    seal("scores_r1", scores)
    found = read_pools(paths.STORE, ["r1"])
    assert found.left_out == {"r1": {"gate": ["clip-r1-1"]}}
    assert [(pool.round, pool.clip_ids) for pool in found.pools] == [
        ("r0", ["seed-0", "seed-1", "seed-2"]),
        ("r1", ["clip-r1-0"]),
    ]
    assert found.drift == {"clip-r1-0": 1e6}


def test_nothing_is_left_out_where_nothing_failed(project):
    found = read_pools(paths.STORE, ["r1", "r2"])
    assert found.left_out == {}
    assert [pool.table for pool in found.pools] == ["seed", "clips_r1", "clips_r2"]


@pytest.mark.parametrize(
    "where",
    [
        "drift > 0.5",
        "drift_part = 'over-saturating' OR round = 'r2'",
        "verdict = 'passed' AND rewriter_kind != 'llm'",
        "oracle_color_error IS NULL",
        "prompt LIKE '%number 0'",
        "drift > 99",
    ],
)
def test_where_means_what_it_means_to_the_catalog(project, where):
    kept = {one for pool in read_pools(paths.STORE, ["r1", "r2"], where).pools[1:] for one in pool.clip_ids}
    build_catalog(paths.STORE, ["r1", "r2"], [])
    asked = Store(paths.STORE).clips(where=where, kind="corrective", columns=["clip_id"])
    assert kept == set(asked["clip_id"].to_pylist())


def test_a_wrong_filter_says_which_columns_there_are(project):
    with pytest.raises(StoreError, match="mixture: where 'driftt > 1': no column 'driftt', did you mean 'drift'.*seam"):
        read_pools(paths.STORE, ["r1"], "driftt > 1")
    with pytest.raises(StoreError, match="mixture: where .* is not allowed in a filter"):
        read_pools(paths.STORE, ["r1"], "length(prompt) > 3")


def many(count: int) -> None:
    """Tables of a round r1 with so many clips, all of one rewrite."""
    scores = [score_rows("r1")[0] | {"rollout_id": f"rollout-{n}", "drift": float(n)} for n in range(count)]
    clip = clip_rows("r1", "model-0")[0]
    clips = [clip | {"clip_id": f"clip-{n}", "rollout_id": f"rollout-{n}"} for n in range(count)]
    seal("scores_r1", scores)
    seal("clips_r1", clips)


def test_at_most_so_many_clips_take_part_and_more_clips_change_few_of_them(project):
    many(40)
    before = read_pools(paths.STORE, ["r1"], None, 10, 3)
    assert len(before.pools[1].clip_ids) == 10
    assert len(before.left_out["r1"]["max_clips"]) == 30
    assert set(before.drift) == set(before.pools[1].clip_ids)
    assert read_pools(paths.STORE, ["r1"], None, 10, 4).pools != before.pools, "another seed, others"
    assert read_pools(paths.STORE, ["r1"], None, 40, 3).left_out == {}
    many(44)
    after = read_pools(paths.STORE, ["r1"], None, 10, 3)
    gone = set(before.pools[1].clip_ids) - set(after.pools[1].clip_ids)
    assert len(gone) == len({one for one in after.pools[1].clip_ids if int(one[5:]) >= 40}) <= 4


def test_reasons_are_asked_in_order_and_a_clip_has_one(project):
    many(20)
    scores = [score_rows("r1")[0] | {"rollout_id": f"rollout-{n}", "drift": float(n), "gates": "nan" if n < 3 else ""}
              for n in range(20)]  # fmt: skip
    seal("scores_r1", scores)
    left_out = read_pools(paths.STORE, ["r1"], "drift >= 2 AND drift < 15", 5).left_out["r1"]
    assert {reason: len(clips) for reason, clips in left_out.items()} == {"gate": 3, "where": 5, "max_clips": 7}
    assert sorted(left_out["gate"]) == ["clip-0", "clip-1", "clip-2"]


# ---------------------------------------------------------------- the stage


def test_the_stage_writes_the_plan_the_tables_it_is_of_and_what_it_amounts_to(project):
    mix.main(project, "r2")
    plan, digest = read_plan(paths.plan("r2"))
    told = json.loads(paths.plan_summary("r2").read_text())
    tables = {name: read_manifest(paths.manifest(name)).digest for name in ("seed", "clips_r1", "clips_r2")}
    assert told["tables"] == plan_tables(paths.plan("r2")) == record("r2")["inputs"] == tables
    assert told["plan_digest"] == digest == record("r2")["outputs"]["plan_digest"]
    assert told["scores"] == {f"scores_{k}": read_manifest(paths.manifest(f"scores_{k}")).digest for k in ("r1", "r2")}
    counts = draws(plan)["r2"]
    drawn = [0.4] * counts["clip-r2-0"] + [0.1] * counts["clip-r2-1"]
    assert told["rounds"]["r2"]["drift"] == pytest.approx(
        {"unknown": 0, "min": 0.1, "max": 0.4, "mean": np.mean(drawn),
         **{name: np.quantile(drawn, q) for name, q in (("q10", 0.1), ("median", 0.5), ("q90", 0.9))}}
    )  # fmt: skip
    assert told["rounds"]["r2"]["pool"] == 2
    assert "drift" not in told["rounds"]["r0"]
    assert "left_out" not in told


def test_a_clip_without_a_drift_is_counted_as_unknown(project):
    seal("scores_r1", [row | {"drift": None} for row in score_rows("r1")])
    pools = mix.pools_of(project, "r1")
    facts = mix.facts_of(mix.plan_of(project, "r1", pools, 0.5), pools)
    assert facts["rounds"]["r1"]["drift"] == {"unknown": 4}
    facts = mix.facts_of(mix.plan_of(project, "r1", pools, 0.0), pools)
    assert (facts["rounds"]["r1"]["samples"], facts["rounds"]["r1"]["drift"]) == (0, {"unknown": 0})


def test_a_run_tells_no_more_than_before_while_the_knobs_are_at_their_defaults(project):
    mix.main(project, "r1")
    assert record("r1")["params"] == {"random_seed": 0, "corrective": 0.5, "samples": 8}
    mix.main(with_mixture(project, max_repeats=2), "r1")  # refuses plans, and makes no other
    assert record("r1")["params"] == {"random_seed": 0, "corrective": 0.5, "samples": 8}
    mix.main(with_mixture(project, where="drift > 0.7", order="ramp", max_clips=5), "r1")
    assert record("r1")["params"] == {
        "random_seed": 0, "corrective": 0.5, "samples": 8, "filtered": {"r1": ["clip-r1-1"]},
        "mixture": {"where": "drift > 0.7", "order": "ramp", "max_clips": 5},
    }  # fmt: skip
    mix.main(with_mixture(project, where="drift > 0.7", order="ramp"), "r0")
    assert record("r0")["params"] == {"random_seed": 0, "corrective": 0.0, "samples": 12}


def test_left_out_clips_are_told_by_reason_and_never_drawn(project, capsys):
    seal("scores_r1", [row | {"gates": "nan" if n == 0 else ""} for n, row in enumerate(score_rows("r1"))])
    mix.main(with_mixture(with_share(project, "r2", 0.5), where="drift > 0.3"), "r2")
    told = json.loads(paths.plan_summary("r2").read_text())
    assert told["left_out"] == {"r1": {"gate": 1}, "r2": {"where": 1}}
    assert set(read_plan(paths.plan("r2"))[0]["clip_id"].to_pylist()) - {"seed-0", "seed-1", "seed-2"} == {
        "clip-r1-1",
        "clip-r2-0",
    }
    assert capsys.readouterr().err.splitlines()[:2] == [
        "mix-r2: 1 corrective clips of r1 are left out: their rollouts failed a hard gate",
        "mix-r2: 1 corrective clips of r2 are left out: mixture.where does not hold",
    ]


def test_where_all_rollouts_failed_it_says_why_there_are_no_clips(project, capsys):
    seal("scores_r1", [row | {"gates": "nan"} for row in score_rows("r1")])
    with pytest.raises(StoreError, match="there are none"):
        mix.main(project, "r1")
    assert "mix-r1: 2 corrective clips of r1 are left out" in capsys.readouterr().err
    assert not paths.plan("r1").exists()


def test_other_scores_of_the_same_clips_give_the_same_plan_to_the_byte(project):
    """A training depends on the plan's file."""
    mix.main(project, "r1")
    before, run = paths.plan("r1").read_bytes(), record("r1")["run_id"]
    told = json.loads(paths.plan_summary("r1").read_text())
    seal("scores_r1", [row | {"drift": 7.0} for row in score_rows("r1")])
    mix.main(project, "r1")
    assert (paths.plan("r1").read_bytes(), record("r1")["run_id"]) == (before, run)
    again = json.loads(paths.plan_summary("r1").read_text())
    assert {key for key in told if told[key] != again[key]} == {"scores", "rounds"}


def test_shares_by_round_reach_the_plan(project):
    mix.main(with_share(project, "r2", {"r1": 0.125, "r2": 0.5}), "r2")
    told = json.loads(paths.plan_summary("r2").read_text())
    assert {name: part["samples"] for name, part in told["rounds"].items()} == {"r0": 3, "r1": 1, "r2": 4}
    assert record("r2")["params"]["corrective"] == {"r1": 0.125, "r2": 0.5}


def test_the_knobs_change_the_plan_and_its_order(project):
    seen = set()
    for knobs in ({}, {"order": "rounds"}, {"order": "ramp"}, {"max_clips": 1}, {"where": "drift < 0.5"}):
        params = with_mixture(with_share(project, "r2", 0.5), **knobs)
        seen.add(plan_digest(mix.plan_of(params, "r2", mix.pools_of(params, "r2"), 0.5)))
    assert len(seen) == 5

import itertools

import pyarrow.parquet as pq
import pytest

from store.mixture import PLAN, Pool, expand, plan_digest, read_plan, summary, write_plan
from store.table import StoreError


def pools(seeds=10, r1=4, r2=6) -> list[Pool]:
    return [
        Pool("seed", "r0", "seed", [f"seed-{n}" for n in range(seeds)]),
        Pool("corrective", "r1", "clips_r1", [f"clip-1-{n}" for n in range(r1)]),
        Pool("corrective", "r2", "clips_r2", [f"clip-2-{n}" for n in range(r2)]),
    ]


def ids(table, kind=None):
    return [row["clip_id"] for row in table.to_pylist() if kind in (None, row["kind"])]


def test_a_plan_depends_on_clips_share_and_seed_only():
    plan = expand(pools(), 0.4, 100, seed=0)
    backwards = [Pool(p.kind, p.round, p.table, p.clip_ids[::-1]) for p in pools()[::-1]]
    assert expand(backwards, 0.4, 100, seed=0).equals(plan)
    assert not expand(pools(), 0.4, 100, seed=1).equals(plan)
    assert plan.schema.equals(PLAN)
    assert plan["position"].to_pylist() == list(range(100))
    # A plan is kept and must not change with a library's version: the start of one, for ever.
    assert ids(expand(pools(3, 2, 0), "uniform", 5, seed=0)) == ["seed-1", "clip-1-1", "seed-2", "clip-1-0", "seed-0"]


@pytest.mark.parametrize("share", [0, 0.1, 0.125, 0.4, 0.5, 2 / 3, 0.999, 1])
@pytest.mark.parametrize("num_samples", [1, 7, 96])
def test_the_share_is_exact_and_even(share, num_samples):
    kinds = [row["kind"] for row in expand(pools(), share, num_samples, seed=3).to_pylist()]
    total = kinds.count("corrective")
    assert abs(total - share * num_samples) <= 0.5
    for end, so_far in enumerate(itertools.accumulate(kind == "corrective" for kind in kinds), start=1):
        assert abs(so_far - total * end / num_samples) < 1


@pytest.mark.parametrize(("share", "kind", "size"), [(0.5, "seed", 10), (0.5, "corrective", 10), ("uniform", None, 20)])
def test_no_clip_comes_again_before_its_pool_is_exhausted(share, kind, size):
    drawn = ids(expand(pools(), share, 200, seed=0), kind)
    epochs = [drawn[start : start + size] for start in range(0, len(drawn) - size + 1, size)]
    assert len(epochs) >= 10
    assert all(len(set(epoch)) == size for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs), "every permutation is fresh"


def test_rows_name_the_table_that_holds_the_clip():
    for row in expand(pools(), "uniform", 40, seed=0).to_pylist():
        number = row["clip_id"].split("-")[1]
        expected = ("seed", "r0", "seed") if row["kind"] == "seed" else ("corrective", f"r{number}", f"clips_r{number}")
        assert (row["kind"], row["round"], row["table"]) == expected


@pytest.mark.parametrize(
    ("mixed", "share", "message"),
    [
        (pools(r1=0, r2=0), 0.5, "asks for 5 corrective clips of 10; there are none"),
        (pools(seeds=0), 0.5, "asks for 5 seed clips of 10; there are none"),
        (pools(0, 0, 0), "uniform", "every pool is empty"),
        ([], 0.0, "every pool is empty"),
        (pools(), 1.5, "corrective = 1.5; allowed: a number from 0 to 1, or 'uniform'"),
        (pools(), -0.1, "allowed"),
        (pools(), float("nan"), "allowed"),
        (pools(), True, "allowed"),
        (pools(), "even", "corrective = 'even'"),
        (pools() + pools(), 0.5, "more than once: seed-0"),
        ([Pool("real", "r0", "seed", ["seed-0"])], 0.5, "kind is 'real'"),
    ],
)
def test_what_cannot_be_mixed_is_refused(mixed, share, message):
    with pytest.raises(StoreError, match=message):
        expand(mixed, share, 10, seed=0)


def test_seed_only_plans_need_no_corrective_clips():
    assert set(ids(expand(pools(r1=0, r2=0), 0.0, 20, seed=0))) == set(ids(expand(pools(), 0.0, 20, seed=0)))
    with pytest.raises(StoreError, match="at least one sample"):
        expand(pools(), 0.0, 0, seed=0)


def test_equal_plans_have_equal_bytes(tmp_path):
    plan = expand(pools(), 0.5, 300, seed=0)
    a, b = tmp_path / "a" / "r1.parquet", tmp_path / "b.parquet"
    assert write_plan(plan, a) == write_plan(expand(pools(), 0.5, 300, seed=0), b) == plan_digest(plan)
    assert a.read_bytes() == b.read_bytes()
    again, found = read_plan(a)
    assert again.equals(plan)
    assert found == plan_digest(plan)
    assert plan_digest(expand(pools(), 0.5, 300, seed=1)) != found


def test_a_changed_or_missing_plan_is_refused(tmp_path):
    path = tmp_path / "r1.parquet"
    with pytest.raises(StoreError, match="dvc repro mix@r1"):
        read_plan(path)
    write_plan(expand(pools(), 0.5, 30, seed=0), path)
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path)
    with pytest.raises(StoreError, match="digest differs"):
        read_plan(path)
    path.write_bytes(b"PAR1")
    with pytest.raises(StoreError, match="cannot be read"):
        read_plan(path)


def test_summary_counts_what_was_drawn():
    found = summary(expand(pools(), 0.5, 100, seed=0))
    assert (found["num_samples"], found["corrective"], list(found["rounds"])) == (100, 0.5, ["r0", "r1", "r2"])
    assert found["rounds"]["r0"] == {"samples": 50, "share": 0.5, "clips": 10, "most_repeats": 5}
    assert found["rounds"]["r1"] == {"samples": 20, "share": 0.2, "clips": 4, "most_repeats": 5}

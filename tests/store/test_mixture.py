import itertools
from collections import Counter
from fractions import Fraction

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.mixture import (
    PLAN,
    Pool,
    apportion,
    draws,
    expand,
    plan_digest,
    plan_tables,
    read_plan,
    summary,
    whole_share,
    write_plan,
)
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


@pytest.mark.parametrize(
    ("share", "digest"),
    [
        (0.0, "6b4b3e81a4d7a32b841befef99c0f18d3cad7d7540b2cd3478e0e2ecdc7ed692"),
        (0.3, "2229d81e8bba72dc7b0db9f201b17e9256d83719a417fc2e2eb84b3b9f77affb"),
        (0.5, "c61640a6710ad41bd278cba8af8612afcc41f25dc199e1fcbe99db2cf4840029"),
        (1.0, "aa109ca4eea8cd90a9d1e5bcaec560927bdb98c61e8ccaf79618f393c7b18feb"),
        ("uniform", "7567ccf3d3ffb0ed2a6e8ac31e0c6aa19265230fe1058bd199d6be2f34716cc8"),
        ({"r1": 0.1, "r2": 0.3}, "5f8b1811baa24ddf54d642db1b27d777a31c2059c1bc5e5cc86ba3cbca69b618"),
    ],
)
def test_plans_are_for_ever(share, digest):
    """Another plan is another training: who changes one of these trains all there is anew."""
    assert plan_digest(expand(pools(), share, 97, seed=7)) == digest


@pytest.mark.parametrize("share", [0, 0.1, 0.125, 0.4, 0.5, 2 / 3, 0.999, 1])
@pytest.mark.parametrize("num_samples", [1, 7, 96])
def test_the_share_is_exact_and_even(share, num_samples):
    kinds = [row["kind"] for row in expand(pools(), share, num_samples, seed=3).to_pylist()]
    total = kinds.count("corrective")
    assert abs(total - share * num_samples) <= 0.5
    for end, so_far in enumerate(itertools.accumulate(kind == "corrective" for kind in kinds), start=1):
        assert abs(so_far - total * end / num_samples) < 1


@st.composite
def shares_of(draw, most=100):
    """Hundredths of some rounds, as decimals, and a number of samples."""
    rest, shares = most, {}
    for name in draw(st.lists(st.sampled_from([f"r{k}" for k in range(1, 13)]), min_size=1, unique=True)):
        shares[name] = draw(st.integers(0, rest))
        rest -= shares[name]
    return {name: one / 100 for name, one in shares.items()}, draw(st.integers(1, 300))


def of_rounds(count=12) -> list[Pool]:
    seeds = Pool("seed", "r0", "seed", ["seed-0", "seed-1", "seed-2"])
    return [seeds, *(Pool("corrective", f"r{k}", f"clips_r{k}", [f"clip-{k}"]) for k in range(1, count + 1))]


@given(shares_of())
def test_shares_by_round_are_exact_and_even(case):
    shares, num_samples = case
    rounds = expand(of_rounds(), shares, num_samples, seed=0)["round"].to_pylist()
    totals = Counter(rounds)
    exact = {name: Fraction(repr(share)) * num_samples for name, share in shares.items()}
    exact["r0"] = num_samples - sum(exact.values())
    assert set(totals) <= set(exact)
    for name, quota in exact.items():
        assert abs(totals[name] - quota) < 1
    so_far = Counter()
    for position, name in enumerate(rounds, start=1):
        so_far[name] += 1
        for one, total in totals.items():
            assert abs(so_far[one] - Fraction(total * position, num_samples)) < 1, (one, position)


@given(st.lists(st.integers(0, 50), min_size=1).filter(any), st.integers(0, 1000))
def test_apportioned_numbers_are_whole_within_one_and_add_up(weights, total):
    counts = apportion(weights, total)
    assert sum(counts) == total
    quotas = [Fraction(total * one, sum(weights)) for one in weights]
    assert all(abs(count - quota) < 1 for count, quota in zip(counts, quotas, strict=True))
    # Largest remainder: who was rounded up had no smaller remainder than who was rounded down.
    up = [quota % 1 for count, quota in zip(counts, quotas, strict=True) if count > quota]
    down = [quota % 1 for count, quota in zip(counts, quotas, strict=True) if count < quota]
    assert not up or not down or min(up) >= max(down)


def test_shares_are_the_decimals_that_were_written():
    shares = {"r1": 0.33, "r2": 0.56, "r3": 0.11}
    assert sum(shares.values()) > 1
    assert whole_share(shares) == 1
    assert Counter(expand(of_rounds(3), shares, 100, seed=0)["round"].to_pylist()) == {"r1": 33, "r2": 56, "r3": 11}


@pytest.mark.parametrize("share", [0.5, "uniform", {"r1": 0.125, "r2": 0.375}])
def test_in_order_of_rounds_each_round_has_its_part(share):
    plan = expand(pools(20, 5, 15), share, 400, seed=0, order="rounds")
    rounds = [row["round"] for row in plan.to_pylist() if row["kind"] == "corrective"]
    assert rounds == ["r1"] * 50 + ["r2"] * 150
    kinds = plan["kind"].to_pylist()
    assert kinds == expand(pools(20, 5, 15), 0.5, 400, seed=0)["kind"].to_pylist(), "seed comes as it does when mixed"
    assert set(draws(plan)["r1"].values()) == {10}, "each round goes through its own clips"


@pytest.mark.parametrize(
    ("share", "whole"), [(0.1, 0.1), (0.5, 0.5), ("uniform", 8 / 18), ({"r1": 0.1, "r2": 0.3}, 0.4)]
)
@pytest.mark.parametrize("num_samples", [1, 7, 400])
def test_a_ramp_grows_linearly_to_its_share(share, whole, num_samples):
    rows = expand(pools(10, 4, 4), share, num_samples, seed=0, order="ramp").to_pylist()
    kinds = [row["kind"] == "corrective" for row in rows]
    total = sum(kinds)
    assert abs(total - whole * num_samples) <= 0.5
    for end, so_far in enumerate(itertools.accumulate(kinds), start=1):
        assert abs(so_far - Fraction(total * end**2, num_samples**2)) < 1
    if num_samples == 400 and isinstance(share, dict):
        rounds = [row["round"] for row in rows if row["kind"] == "corrective"]
        for end, so_far in enumerate(itertools.accumulate(name == "r2" for name in rounds), start=1):
            assert abs(so_far - 0.75 * end) < 1


@given(shares_of(most=50))
def test_any_share_to_a_half_can_be_ramped(case):
    shares, num_samples = case
    rounds = expand(of_rounds(), shares, num_samples, seed=0, order="ramp")["round"].to_pylist()
    assert sum(name != "r0" for name in rounds) <= num_samples // 2
    for name, share in shares.items():
        assert abs(rounds.count(name) - share * num_samples) < 2  # and 1 where no half is rounded


@pytest.mark.parametrize("order", ["mixed", "rounds", "ramp"])
@pytest.mark.parametrize("share", [0.4, "uniform", {"r2": 0.3, "r1": 0.1}])
def test_no_order_of_pools_clips_or_shares_changes_a_plan(order, share):
    mixed = pools(12, 4, 6)
    plan = expand(mixed, share, 100, seed=0, order=order)
    backwards = [Pool(p.kind, p.round, p.table, p.clip_ids[::-1]) for p in mixed[::-1]]
    turned = dict(reversed(share.items())) if isinstance(share, dict) else share
    assert expand(backwards, turned, 100, seed=0, order=order).equals(plan)


def test_max_repeats_is_held_or_refused_with_what_would_do():
    plan = expand(pools(), {"r1": 0.2, "r2": 0.3}, 100, seed=0, max_repeats=5)
    assert max(max(counts.values()) for counts in draws(plan).values()) == 5
    assert expand(pools(), {"r1": 0.2, "r2": 0.3}, 100, seed=0).equals(plan)
    for share, message in (
        ({"r1": 0.2, "r2": 0.3}, "needs 20 of its 100 samples from corrective clips of r1; there are 4, which give 16. "
         "What would do: max_repeats of 5, or a share of corrective clips of r1 of at most 0.16, or fewer steps"),
        (0.5, "needs 50 of its 100 samples from corrective clips; there are 10, which give 40. What would do: "
         "max_repeats of 5, or a share of corrective clips of at most 0.4, or fewer steps"),
        (0.0, "needs 100 of its 100 samples from seed clips; there are 10, which give 40. What would do: "
         "max_repeats of 10, or fewer steps"),
        ("uniform", "needs 100 of its 100 samples from all clips; there are 20, which give 80. What would do: "
         "max_repeats of 5, or fewer steps"),
    ):  # fmt: skip
        with pytest.raises(StoreError, match=message):
            expand(pools(), share, 100, seed=0, max_repeats=4)
    for share in (0.4, {"r1": 0.16, "r2": 0.24}):  # what was said would do, does
        expand(pools(15), share, 100, seed=0, max_repeats=4)


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
        (pools(), {"r1": 0.5, "r2": 0.6}, "'r2': 0.6}: its shares add up to 1.1; allowed: at most 1"),
        (pools(), {"r1": -0.5}, "allowed: a number from 0 to 1, or 'uniform', or such numbers by round"),
        (pools(), {"r3": 0.5}, "asks for 5 corrective r3 clips of 10; there are none"),
        (pools(r1=0), {"r1": 0.5}, "asks for 5 corrective r1 clips of 10; there are none"),
        (pools(seeds=0), {"r1": 0.5}, "asks for 5 seed clips of 10; there are none"),
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


def test_other_values_out_of_range_are_refused():
    for settings, message in (
        ({"order": "shuffled"}, "order = 'shuffled'; allowed: mixed, rounds, ramp"),
        ({"max_repeats": 0}, "max_repeats = 0; allowed: a whole number from 1"),
    ):
        with pytest.raises(StoreError, match=message):
            expand(pools(), 0.5, 10, seed=0, **settings)
    for share in (0.6, {"r1": 0.3, "r2": 0.3}, "uniform"):
        with pytest.raises(StoreError, match=r"order = 'ramp': the share .* is 0\.[67].*; allowed: at most 0\.5"):
            expand(pools(seeds=5), share, 10, seed=0, order="ramp")


def test_a_plan_tells_the_tables_it_was_made_of_beside_its_content(tmp_path):
    plan, path = expand(pools(), 0.5, 30, seed=0), tmp_path / "r1.parquet"
    tables = {"seed": "a" * 64, "clips_r1": "b" * 64}
    assert write_plan(plan, path, tables) == plan_digest(plan)
    assert plan_tables(path) == tables
    assert read_plan(path)[0].equals(plan)
    before = path.read_bytes()
    write_plan(plan, path, dict(reversed(tables.items())))
    assert path.read_bytes() == before
    write_plan(plan, path)
    assert (plan_tables(path), read_plan(path)[1]) == ({}, plan_digest(plan))
    with pytest.raises(StoreError, match="no plan .*; make it with `dvc repro mix_r0`"):
        plan_tables(tmp_path / "r0.parquet")


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
    repeats = {"least_repeats": 5, "mean_repeats": 5.0, "most_repeats": 5}
    assert found["rounds"]["r0"] == {"samples": 50, "share": 0.5, "clips": 10, **repeats}
    assert found["rounds"]["r1"] == {"samples": 20, "share": 0.2, "clips": 4, **repeats}
    found = summary(expand(pools(), 0.0, 25, seed=0))["rounds"]["r0"]
    assert (found["least_repeats"], found["mean_repeats"], found["most_repeats"]) == (2, 2.5, 3)


def test_draws_are_counted_by_round():
    counted = draws(expand(pools(), 0.5, 40, seed=0))
    assert counted["r1"] == {f"clip-1-{n}": 2 for n in range(4)}
    assert not counted["r3"]

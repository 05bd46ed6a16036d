"""Two states of the catalog compared."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from store import Store
from store.catalog import build_catalog
from store.dataset import write_fresh
from store.diff import BINS, PARTS
from store.errors import StoreError
from store.schema import CATALOG, REGISTRY_CATALOG


@pytest.fixture
def changed(tiny, rows, tmp_path) -> Store:
    """The tiny store, but of round r2: clip-r2-0 scored anew, clip-r2-1 gone, clip-r2-2 new."""
    for name in ("seed", "clips_r1", "rewrites_r1", "scores_r1"):
        (tmp_path / "store").mkdir(exist_ok=True)
        (tmp_path / "store" / f"{name}.lance").symlink_to(tiny.store / f"{name}.lance")
    clips, scores = rows.clips("r2", tiny.models["r1"]), rows.scores("r2")
    scores[0] |= {"drift": 1.4, "drift_motion": -2.5, "oracle_color_error": None, "gates": "black"}
    scores[0] |= {"drift_part": "freezing", "drift_parts": "freezing,over-saturating"}
    scores[1] |= {"rollout_id": "rollout-r2-2", "drift": 3.0}
    clips[0] |= {"was_derived_from": ["rollout-r2-0", "rewrite-0", "seed-0"]}
    clips[1] |= {"clip_id": "clip-r2-2", "rollout_id": "rollout-r2-2", "reversal_class": "invariant"}
    rows.seal(tmp_path, "rewrites_r2", rows.rewrites("r2"))
    rows.seal(tmp_path, "scores_r2", scores)
    rows.seal(tmp_path, "clips_r2", clips)
    build_catalog(tmp_path / "store", ["r1", "r2"], [])
    return Store(tmp_path / "store")


def test_what_changed_is_told_with_its_values(tiny, changed):
    found = Store(tiny.store).diff(changed)
    assert found.counts == {"a": 8, "b": 8, "added": 1, "removed": 1, "changed": 1, "unchanged": 6}
    assert not found.empty
    [row] = found.changed.to_pylist()
    assert row["clip_id"] == "clip-r2-0"
    assert row["columns"] == [
        "drift_motion", "drift", "drift_part", "drift_parts", "oracle_color_error", "gates", "was_derived_from"
    ] == [name for name in CATALOG.names if name in row["columns"]]  # fmt: skip
    values = {name: (row[f"a.{name}"], row[f"b.{name}"]) for name in row["columns"]}
    assert values["drift"] == pytest.approx((0.4, 1.4))
    assert values["drift_motion"] == pytest.approx((0.1, -2.5))
    assert values["drift_part"] == ("over-saturating", "freezing")
    assert values["oracle_color_error"] == (0.25, None)
    assert values["gates"] == ("", "black")
    assert values["was_derived_from"] == ("rollout-r2-0 rewrite-0", "rollout-r2-0 rewrite-0 seed-0")
    assert found.added.to_pylist() == [
        {"clip_id": "clip-r2-2", "kind": "corrective", "round": "r2", "reversal_class": "invariant", "drift": 3.0,
         "prompt": "a red disc moves right, it's number 1"}
    ]  # fmt: skip
    assert found.removed["clip_id"].to_pylist() == ["clip-r2-1"]


def test_the_other_way_round_is_the_mirror_image(tiny, changed):
    there, back = Store(tiny.store).diff(changed), changed.diff(Store(tiny.store))
    assert back.removed.equals(there.added)
    assert back.added.equals(there.removed)
    assert back.changed["b.drift"].equals(there.changed["a.drift"])
    assert back.clips()["drift_change"].to_pylist()[0] == -there.clips()["drift_change"].to_pylist()[0]


def test_equal_states_differ_in_nothing(tiny, tiny_copy):
    for one, other, at in ((tiny, tiny, None), (tiny, tiny_copy, None), (tiny, tiny_copy, "r1")):
        found = Store(one.store).diff(Store(other.store), at=at, other_at=at)
        assert found.empty
        assert found.counts["unchanged"] == (6 if at else 8)
        assert found.clips().num_rows == 0


def test_rounds_add_clips(tiny):
    store = Store(tiny.store)
    found = store.diff(store, at="r0", other_at="r1")
    assert found.counts == {"a": 4, "b": 6, "added": 2, "removed": 0, "changed": 0, "unchanged": 4}
    assert found.added["clip_id"].to_pylist() == ["clip-r1-0", "clip-r1-1"]
    assert store.diff(store, at="r2", other_at="r0").counts["removed"] == 4
    with pytest.raises(StoreError, match="no tag 'r9' in the catalog of .*; it has r0, r1, r2"):
        store.diff(store, at="r9")
    with pytest.raises(StoreError, match="one project's clips, not experiments"):
        store.diff(store, experiment="baseline")


def test_clips_are_listed_by_how_much_they_changed_or_as_told(tiny, changed):
    found = Store(tiny.store).diff(changed)
    assert found.clips()["clip_id"].to_pylist() == ["clip-r2-0", "clip-r2-2", "clip-r2-1"]
    assert found.clips(limit=1)["drift_change"].to_pylist() == pytest.approx([1.0])
    assert found.clips(sort="clip_id")["change"].to_pylist() == ["changed", "removed", "added"]
    assert found.clips(sort="-drift_b")["clip_id"].to_pylist() == ["clip-r2-2", "clip-r2-0", "clip-r2-1"]
    assert found.clips(sort="drift_b")["clip_id"].to_pylist() == ["clip-r2-0", "clip-r2-2", "clip-r2-1"]
    assert found.clips(only="removed")["clip_id"].to_pylist() == ["clip-r2-1"]
    for wrong, said in (
        ({"only": "adde"}, "did you mean 'added'"),
        ({"sort": "-drfit_b"}, "did you mean 'drift_b'"),
        ({"limit": -1}, "limit must be 0 or more; got -1"),
    ):
        with pytest.raises(StoreError, match=said):
            found.clips(**wrong)


def test_distributions_stand_side_by_side(tiny, changed):
    table = Store(tiny.store).diff(changed).distribution.to_pylist()
    of = {(one["by"], one["group"], one["part"], one["side"]): one for one in table}
    before, after = of["all", "all", "drift", "A"], of["all", "all", "drift", "B"]
    assert (before["clips"], before["scored"]) == (8, 4)
    assert [before[q] for q in ("min", "median", "max", "mean")] == pytest.approx([0.1, 0.5, 0.9, 0.5])
    assert [after[q] for q in ("min", "median", "max")] == pytest.approx([0.6, 1.15, 3.0])
    assert of["all", "all", "drift_motion", "B"]["min"] == pytest.approx(-2.5)
    assert of["round", "r2", "drift", "B"]["median"] == pytest.approx(2.2)
    assert of["round", "r0", "drift", "A"]["median"] is None
    assert of["class", "invariant", "drift", "B"]["clips"] == 1
    assert of["class", "equivariant", "drift", "removed"]["max"] == pytest.approx(0.1)
    assert ("class", "invariant", "drift", "A") not in of
    assert {one["part"] for one in table} == set(PARTS)


def big(folder, drift: np.ndarray, first: int = 0) -> Store:
    """A catalog of many clips, of which `drift` is known, NaN being unknown."""
    count = len(drift)
    constant = {"string": "x", "int32": 1, "double": 8.0}
    columns = []
    for field in CATALOG:
        if field.name == "clip_id":
            column = pa.array([f"clip-{n:08d}" for n in range(first, first + count)])
        elif field.name.startswith("drift") and field.type == pa.float32():
            column = pa.array(drift.astype(np.float32), from_pandas=True)
        elif field.nullable:
            column = pa.nulls(count, field.type)
        elif pa.types.is_fixed_size_list(field.type):
            column = pa.FixedSizeListArray.from_arrays(
                pa.array(np.zeros(count * field.type.list_size, np.float32)), field.type.list_size
            )
        elif pa.types.is_list(field.type):
            column = pa.array([["x"]] * count)
        else:
            column = pa.array([constant[str(field.type)]] * count, field.type)
        columns.append(column)
    table = pa.Table.from_arrays(columns, schema=CATALOG)
    write_fresh(table.to_batches(max_chunksize=7_001), CATALOG, folder / "catalog.lance")
    return Store(folder)


def test_many_clips_are_compared_exactly(tmp_path):
    """Against a plain Python reckoning; histogram and quantiles against numpy."""
    random = np.random.default_rng(0)
    before = random.gamma(2.0, 1.0, 20_000).astype(np.float32)
    before[::50] = np.nan
    after = before[1_000:].copy()
    touched = random.choice(len(after), 700, replace=False)
    after[touched] += np.float32(1.0)  # unknown stays unknown
    after = np.concatenate([after, random.gamma(3.0, 1.0, 500).astype(np.float32)])
    found = big(tmp_path / "a", before).diff(big(tmp_path / "b", after, first=1_000))
    known = int((~np.isnan(before[1_000:][touched])).sum())
    assert found.counts == {
        "a": 20_000, "b": 19_500, "added": 500, "removed": 1_000, "changed": known, "unchanged": 19_000 - known
    }  # fmt: skip
    assert found.added["clip_id"].to_pylist() == [f"clip-{n:08d}" for n in range(20_000, 20_500)]
    expected = {f"clip-{n + 1_000:08d}" for n in touched if not np.isnan(before[n + 1_000])}
    assert set(found.changed["clip_id"].to_pylist()) == expected
    np.testing.assert_allclose(found.clips("changed")["drift_change"].to_numpy(), 1.0, atol=1e-6)

    bins = found.histogram.filter(pc.equal(found.histogram["part"], "drift")).to_pylist()
    assert len(bins) == BINS
    sides = {"A": before, "B": after, "removed": before[:1_000], "added": after[-500:]}
    for side, values in sides.items():
        values = values[~np.isnan(values)]
        counts = [one[side] for one in bins]
        assert sum(counts) == len(values)
        within = [((values >= one["low"]) & (values < one["high"])).sum() for one in bins]
        assert counts[:-1] == within[:-1]  # the last bin holds its upper edge too
    [row] = [one for one in found.distribution.to_pylist()
             if (one["by"], one["part"], one["side"]) == ("all", "drift", "added")]  # fmt: skip
    assert row["p95"] == pytest.approx(np.nanquantile(after[-500:], 0.95))


def test_values_that_are_all_alike_have_one_bin(tmp_path):
    found = big(tmp_path / "a", np.full(5, 2.0)).diff(big(tmp_path / "b", np.full(7, 2.0)))
    [only] = [one for one in found.histogram.to_pylist() if one["part"] == "drift"]
    assert (only["low"], only["high"], only["A"], only["B"], only["added"]) == (2.0, 2.0, 5, 7, 2)


def test_catalogs_without_a_score_or_a_clip(tmp_path):
    found = big(tmp_path / "a", np.full(3, np.nan)).diff(big(tmp_path / "b", np.zeros(0)))
    assert found.counts == {"a": 3, "b": 0, "added": 0, "removed": 3, "changed": 0, "unchanged": 0}
    assert found.histogram.num_rows == 0
    assert found.clips()["drift_a"].to_pylist() == [None] * 3


def test_experiments_of_a_registry(tiny, tmp_path):
    """Two experiments share their seed clips; rounds belong to an experiment."""
    whole = Store(tiny.store).open("catalog").to_table()
    rounds = {"baseline": ("r0", "r1", "r2"), "warm": ("r0", "r1")}
    pieces = []
    for name, held in rounds.items():
        rows = whole.filter(pc.is_in(whole["round"], pa.array(held)))
        entries = [
            f"{name}/{r}/{c}" for r, c in zip(rows["round"].to_pylist(), rows["clip_id"].to_pylist(), strict=True)
        ]
        columns = [pa.array(entries), pa.array([name] * len(entries)), *rows.columns]
        pieces.append(pa.Table.from_arrays(columns, schema=REGISTRY_CATALOG))
    write_fresh(pa.concat_tables(pieces).to_batches(), REGISTRY_CATALOG, tmp_path / "catalog.lance")
    store = Store(tmp_path)
    found = store.diff(store, experiment="warm", other_experiment="baseline")
    assert found.counts == {"a": 6, "b": 8, "added": 2, "removed": 0, "changed": 0, "unchanged": 6}
    assert found.added["clip_id"].to_pylist() == ["clip-r2-0", "clip-r2-1"]
    assert store.diff(store, None, "r1", "warm", "baseline").empty
    for at, experiment, said in (
        (None, "bseline", "no experiment 'bseline' in .*, did you mean 'baseline'.; it holds baseline, warm"),
        (None, None, "is a registry: say which experiment's clips, of baseline, warm"),
        (None, "x' OR '1'='1", "no experiment"),
        ("r2", "warm", "no round 'r2' of warm in .*; it has r0, r1"),
    ):
        with pytest.raises(StoreError, match=said):
            store.diff(store, at=at, experiment=experiment)

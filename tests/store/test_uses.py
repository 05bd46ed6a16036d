import pytest

from store import Store
from store.digest import id_of
from store.mixture import read_plan
from store.schema import USES
from store.table import StoreError
from store.uses import uses_table


def test_every_position_of_every_plan_is_one_step_of_one_clip(tiny):
    uses = Store(tiny.store).read("uses").to_pylist()
    for name, path in tiny.files.items():
        plan, digest = read_plan(path)
        rows = [row for row in uses if row["plan_id"] == id_of("plan", digest)]
        expected: dict[str, list[int]] = {}
        for position, clip in enumerate(plan["clip_id"].to_pylist()):
            expected.setdefault(clip, []).append(position // 4)
        assert {row["clip_id"]: row["steps"] for row in rows} == expected
        assert {row["model_digest"] for row in rows} == {tiny.models[name]}
        assert {row["round"] for row in rows} == {name}
        assert {row["clip_id"]: (row["kind"], row["clip_round"]) for row in rows} == {
            row["clip_id"]: (row["kind"], row["round"]) for row in plan.to_pylist()
        }


def test_rows_are_sorted_keyed_and_complete(tiny):
    table = uses_table(tiny.runs, tiny.files)
    assert table.schema.equals(USES, check_metadata=True)
    ids = table["use_id"].to_pylist()
    assert ids == sorted(set(ids))
    assert all(row["use_id"] == f"{row['plan_id']}/{row['clip_id']}" for row in table.to_pylist())
    assert sum(len(row["steps"]) for row in table.to_pylist()) == 3 * 12
    assert all(row["steps"] == sorted(row["steps"]) for row in table.to_pylist())
    assert uses_table(tiny.runs, {}).num_rows == 0


def test_a_plan_that_nobody_trained_on_has_no_model_and_one_sample_a_step(tiny):
    rows = uses_table([], {"r1": tiny.files["r1"]}).to_pylist()
    assert {row["model_digest"] for row in rows} == {None}
    assert sorted(step for row in rows for step in row["steps"]) == list(range(12))


def test_what_does_not_fit_is_named(tiny):
    with pytest.raises(StoreError, match="is not what run-train-r2 trained on; run `dvc repro train@r2`"):
        uses_table(tiny.runs, {"r2": tiny.files["r1"]})
    runs = [run | {"params": {"train": {}}} if run["stage"] == "train" else run for run in tiny.runs]
    with pytest.raises(StoreError, match=r"run-train-r0 does not tell its params train\.batch_size"):
        uses_table(runs, tiny.files)
    with pytest.raises(StoreError, match="no plan"):
        uses_table(tiny.runs, {"r0": tiny.root / "nowhere/r0.parquet"})

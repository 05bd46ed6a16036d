import pytest

from store import Store
from store.catalog import build_catalog, catalog_rounds, read_runs
from store.schema import CATALOG
from store.table import StoreError, content_manifest, open_table, table_names

SEEDS = {f"seed-{n}" for n in range(4)}
R1, R2 = ({f"clip-{name}-{n}" for n in range(2)} for name in ("r1", "r2"))


def test_a_tag_is_the_aggregated_data_set_after_its_round(tiny):
    found = {
        tag: set(open_table(tiny.store, "catalog", tag).to_table(columns=["clip_id"])["clip_id"].to_pylist())
        for tag in catalog_rounds(Store(tiny.store))
    }
    assert found == {"r0": SEEDS, "r1": SEEDS | R1, "r2": SEEDS | R1 | R2}
    assert list(found) == ["r0", "r1", "r2"]
    assert open_table(tiny.store, "catalog").count_rows() == 8


def test_rows_join_clip_score_and_parents(tiny):
    table = open_table(tiny.store, "catalog").to_table()
    assert table.schema.equals(CATALOG, check_metadata=True)
    rows = {row["clip_id"]: row for row in table.to_pylist()}
    clip = rows["clip-r1-0"]
    assert (clip["drift"], clip["drift_motion"], clip["oracle_color_error"]) == pytest.approx((0.9, 0.1, 0.25))
    assert rows["clip-r1-1"]["drift"] == pytest.approx(0.6)
    assert rows["clip-r1-1"]["oracle_color_error"] is None
    assert (clip["round"], clip["table"], clip["was_generated_by"]) == ("r1", "clips_r1", "run-correct-r1")
    assert (clip["rollout_id"], clip["seed_clip_id"], clip["rewrite_id"]) == ("rollout-r1-0", "seed-0", "rewrite-0")
    seed = rows["seed-3"]
    assert (seed["round"], seed["split"], seed["table"], seed["drift"]) == ("r0", "heldout", "seed", None)


def test_rebuilding_gives_the_same_manifest_and_leaves_nothing_behind(tiny_copy):
    before = table_names(tiny_copy.store)
    assert build_catalog(tiny_copy.store, ["r0", "r1", "r2"], tiny_copy.runs[::-1]) == tiny_copy.manifest
    assert content_manifest(tiny_copy.store, "catalog") == tiny_copy.manifest
    assert table_names(tiny_copy.store) == before
    assert not (tiny_copy.store / ".sealing").exists()
    assert build_catalog(tiny_copy.store, ["r1"], []).rows == 6
    assert catalog_rounds(Store(tiny_copy.store)) == ["r0", "r1"]


def test_what_does_not_fit_together_is_named_and_the_old_catalog_stays(tiny_copy, rows):
    with pytest.raises(StoreError, match="dvc repro correct@r3"):
        build_catalog(tiny_copy.store, ["r1", "r2", "r3"], [])
    rows.seal(tiny_copy.root / "other", "scores_r1", rows.scores("r1")[:1])
    (tiny_copy.store / "scores_r1.lance").rename(tiny_copy.root / "aside")
    (tiny_copy.root / "other/store/scores_r1.lance").rename(tiny_copy.store / "scores_r1.lance")
    with pytest.raises(StoreError, match="clip-r1-1 comes from rollout-r1-1, which scores_r1 does not hold"):
        build_catalog(tiny_copy.store, ["r1", "r2"], [])
    with pytest.raises(StoreError, match="no column 'stag', did you mean 'stage'"):
        build_catalog(tiny_copy.store, ["r2"], [{**tiny_copy.runs[0], "run_id": "run-x", "stag": "mix"}])
    with pytest.raises(StoreError, match="run run-x: inputs is not JSON"):
        build_catalog(tiny_copy.store, ["r2"], [{**tiny_copy.runs[0], "run_id": "run-x", "inputs": "{"}])
    assert content_manifest(tiny_copy.store, "catalog") == tiny_copy.manifest


def test_runs_are_kept_with_their_json(tiny):
    runs = read_runs(Store(tiny.store))
    assert [one["run_id"] for one in runs] == [one["run_id"] for one in tiny.runs]
    assert runs[-1]["inputs"] == {"plan_digest": tiny.plans["r2"], "init_digest": tiny.models["base"]}

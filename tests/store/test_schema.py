from pathlib import Path

import pytest

from model import drift, features, oracle
from store.describe import TABLES, describe
from store.schema import (
    CATALOG,
    DRIFT_PARTS,
    FEATURES,
    NO_PART,
    REGISTRY_CATALOG,
    SCHEMA_VERSION,
    SCORES,
    VERSION_KEY,
    table_schema,
    table_stage,
)  # fmt: skip

DOCS = Path(__file__).parents[2] / "docs/store.md"


@pytest.mark.parametrize("name", TABLES)
def test_every_column_says_what_it_means_and_the_key_is_never_null(name):
    schema, key = table_schema(name)
    assert schema.metadata[VERSION_KEY] == str(SCHEMA_VERSION).encode()
    assert all(field.metadata[b"doc"] for field in schema)
    assert not schema.field(key).nullable


def test_the_documentation_lists_every_column_as_it_is():
    assert describe() in DOCS.read_text(), "docs/store.md is out of date: python -m store.describe"


@pytest.mark.parametrize(
    ("name", "stage"),
    [("seed", "seed"), ("rollouts_r1", "rollout@r1"), ("scores_r12", "score@r12"), ("clips_r2", "correct@r2")]
    + [("rewrites_r3", "rewrite@r3"), ("rewrites", None)]
    + [(one, "catalog") for one in ("catalog", "runs", "uses")]
    + [(one, None) for one in ("rollouts", "scores", "clips")],
)
def test_stage_of_a_table(name, stage):
    assert table_stage(name) == stage


@pytest.mark.parametrize("name", ["", "clips_r0", "clips_r01", "clips_r1.lance", "../seed", "seed_r1", "catalog\n"])
def test_other_names_are_no_tables(name):
    with pytest.raises(ValueError, match="no table is called"):
        table_schema(name)


def test_a_registry_tells_experiments_apart_and_keeps_the_catalog_s_columns():
    assert REGISTRY_CATALOG.names == ["entry_id", "experiment", *CATALOG.names]


def test_columns_have_the_names_of_what_is_measured():
    """The store may not import what measures, so it says the names again."""
    assert tuple(FEATURES) == (*features.FEATURES, "naturalness")
    assert set(FEATURES) <= set(SCORES.names)
    assert (DRIFT_PARTS, tuple(DRIFT_PARTS), NO_PART) == (drift.NAMES, drift.PARTS, drift.NO_PART)
    exact = [name.removeprefix("oracle_") for name in SCORES.names if name.startswith("oracle_")]
    assert exact == [*oracle.MEASURES, "curves"]
    made = drift.unscored(drift.GATES).row()
    assert set(made) - {"scorer"} == {one for one in SCORES.names if one.startswith("drift")} | {"gates"}
    assert set(made) <= set(CATALOG.names)


def test_every_scalar_of_a_score_is_in_the_catalog():
    curves = {*FEATURES, "latent_curve", "oracle_curves", "measures"}
    assert {one for one in SCORES.names if one not in curves} <= set(CATALOG.names)

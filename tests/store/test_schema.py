from pathlib import Path

import pytest

from store.describe import TABLES, describe
from store.schema import CATALOG, REGISTRY_CATALOG, SCHEMA_VERSION, VERSION_KEY, table_schema, table_stage

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

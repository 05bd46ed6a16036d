from pathlib import Path

import pytest

from flows import mix, paths
from flows.mix import gated
from flows.params import load_params
from store.errors import StoreError
from store.schema import table_schema
from store.table import WorkingTable
from tests.conftest import clip_rows, score_rows, seed_rows
from tests.flows.heldout import ROOT


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def seal(name: str, rows: list[dict]) -> None:
    schema, key = table_schema(name)
    table = WorkingTable(Path("work"), name, schema, key)
    table.upsert(rows)
    table.seal(paths.STORE, paths.manifest(name), [row[key] for row in rows])


def test_clips_of_rollouts_that_failed_a_gate_are_left_out_and_no_others(project):
    scores = score_rows("r1")
    scores[0]["drift"] = 1e6  # much drift is no reason
    scores[1]["gates"] = "black,clipped"
    seal("scores_r1", scores)
    seal("clips_r1", clip_rows("r1", "model-0"))
    assert gated("r1") == ["clip-r1-1"]


def test_nothing_is_left_out_where_nothing_failed(project):
    seal("scores_r1", score_rows("r1"))
    assert gated("r1") == []


def test_where_all_rollouts_failed_it_says_why_there_are_no_clips(project, capsys):
    seed, scores = seed_rows(), [row | {"gates": "nan"} for row in score_rows("r1")]
    for name, rows in (("seed", seed), ("scores_r1", scores), ("clips_r1", clip_rows("r1", "model-0"))):
        seal(name, rows)
    params = load_params(ROOT / "tests" / "smoke.yaml")
    with pytest.raises(StoreError, match="there are none"):
        mix.main(params, "r1")
    assert f"mix-r1: {len(scores)} corrective clips of r1 are left out" in capsys.readouterr().err

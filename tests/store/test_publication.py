import json
import shutil
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from store import Store, shards
from store.errors import StoreError
from store.figures import figures
from store.licence import licences
from store.publication import FILE, File, Publication, Round, columns, data_schema, parse
from store.restoring import check_files, plans_of, records_of, restore_round
from store.schema import DRIFT_PARTS
from store.shards import write_round
from store.table import content_manifest, read_manifest


def publish(tiny, folder, *names, where=None):
    rounds = [write_round(Store(tiny.store), name, folder, where if name != "r0" else None) for name in names]
    return Publication({}).with_rounds(*rounds)


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_reading_what_was_written_gives_the_same_tables(tiny, tmp_path):
    out, store = tmp_path / "out", tmp_path / "store"
    made = publish(tiny, out, "r2", "r0", "r1")
    assert list(made.rounds) == ["r0", "r1", "r2"]
    for one in made.rounds.values():
        check_files(one, out)
        assert set(restore_round(one, out, store, tmp_path / "manifests")) == set(one.tables)
        assert restore_round(one, out, store, tmp_path / "manifests") == []
    for path in (tiny.root / "manifests").glob("*.json"):
        assert read_manifest(tmp_path / "manifests" / path.name) == read_manifest(path)
        assert content_manifest(store, path.stem) == read_manifest(path)


def test_equal_rounds_are_equal_bytes(tiny, tmp_path):
    publish(tiny, tmp_path / "a", "r0", "r1")
    publish(tiny, tmp_path / "b", "r1", "r0")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_publication_json_comes_back(tiny, tmp_path):
    made = publish(tiny, tmp_path, "r1")
    assert parse(made.text(), FILE) == made
    assert parse(made.text().encode(), FILE).text() == made.text()


def test_a_row_of_data_tells_a_clip_and_everything_it_was_made_of(tiny, tmp_path):
    made = publish(tiny, tmp_path, "r1")
    (file,) = made.rounds["r1"].splits()["corrective"]
    table = pq.read_table(tmp_path / file.path)
    assert table.schema.names == list(columns())
    assert b"Video" in table.schema.metadata[b"huggingface"]
    rows = table.to_pylist()
    assert [one["clip_id"] for one in rows] == ["clip-r1-0", "clip-r1-1"]
    first, second = rows
    assert first["video"] == {"bytes": b"mp4 of clip-r1-0", "path": "clip-r1-0.mp4"}
    assert first["rollout_rng_name"] == "rollout/r1/0"
    assert json.loads(first["rollout_settings"])["num_steps"] == 8
    assert first["curve_luma"] == [0.0, 0.5, 1.0]
    assert second["rewrite_model_id"] == "team/tiny-llm"
    assert (second["rewrite_seed"], first["rewrite_seed"]) == (2**40 + 1, None)
    assert first["was_derived_from"] == ["rollout-r1-0", "rewrite-0"]


def test_seed_clips_are_of_the_same_columns_in_splits_of_their_own(tiny, tmp_path):
    made = publish(tiny, tmp_path, "r0")
    splits = made.rounds["r0"].splits()
    assert {name: sum(file.rows for file in files) for name, files in splits.items()} == {"seed": 3, "heldout": 1}
    table = pq.read_table(tmp_path / splits["seed"][0].path)
    assert table.schema.equals(data_schema())
    assert table["source_path"].to_pylist() == ["videos/0.mp4", "videos/1.mp4", "videos/2.mp4"]
    assert table["rollout_id"].null_count == 3


def test_a_filter_publishes_what_it_holds_of(tiny, tmp_path):
    made = publish(tiny, tmp_path / "out", "r1", where="drift > 0.7")
    one = made.rounds["r1"]
    assert (one.where, one.facts["clips"]) == ("drift > 0.7", 1)
    assert {name: manifest.rows for name, manifest in one.tables.items()} == dict.fromkeys(
        ("clips_r1", "rollouts_r1", "scores_r1", "rewrites_r1"), 1
    )
    restore_round(one, tmp_path / "out", tmp_path / "store", tmp_path / "manifests")
    assert Store(tmp_path / "store").read("clips_r1")["clip_id"].to_pylist() == ["clip-r1-0"]


@pytest.mark.parametrize(
    ("name", "where", "said"),
    [("r1", "drift > 100", "'drift > 100' holds"), ("r7", None, "no round 'r7'"), ("r1", "drift >", "drift >")],
)
def test_what_cannot_be_published(tiny, tmp_path, name, where, said):
    with pytest.raises(StoreError, match=said):
        publish(tiny, tmp_path, name, where=where)
    assert contents(tmp_path) == {}


def test_runs_come_without_the_names_of_machines(tiny, tmp_path):
    made = publish(tiny, tmp_path, "r1")
    runs = records_of(made.rounds["r1"], tmp_path)
    assert {one["round"] for one in runs} == {None, "r0", "r1"}
    assert {one["host"] for one in runs} == {""}
    assert set(plans_of(made.rounds["r1"], tmp_path)) == {"r0", "r1"}
    assert b"here" not in (tmp_path / "tables/r1/runs-00000-of-00001.parquet").read_bytes()


def test_large_rounds_are_cut_into_shards_and_row_groups(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 1)
    monkeypatch.setattr(shards, "TAKE_ROWS", 1)
    made = publish(tiny, tmp_path / "out", "r0", "r1")
    assert [file.path for file in made.rounds["r1"].splits()["corrective"]] == [
        "data/r1/corrective-00000-of-00002.parquet", "data/r1/corrective-00001-of-00002.parquet",
    ]  # fmt: skip
    for one in made.rounds.values():
        restore_round(one, tmp_path / "out", tmp_path / "store", tmp_path / "manifests")
    assert content_manifest(tmp_path / "store", "seed") == read_manifest(tiny.root / "manifests" / "seed.json")


def test_licences_of_clips_are_those_of_their_seed_clips(tiny):
    assert licences(Store(tiny.store), "r0") == {None: 4}
    assert licences(Store(tiny.store), "r1") == {None: 2}


def test_facts_tell_signed_parts_and_models_that_were_asked(tiny, tmp_path):
    made = publish(tiny, tmp_path, "r0", "r1")
    facts = made.rounds["r1"].facts
    assert facts["parts"] == dict.fromkeys(DRIFT_PARTS, 0.15)
    assert facts["rewrite_models"] == {f"team/tiny-llm@{'c' * 40}": 1}
    assert not {"parts", "rewrite_models"} & made.rounds["r0"].facts.keys()


def test_facts_leave_out_what_no_clip_has(tiny):
    store = Store(tiny.store)
    entries = store.clips(round="r1")
    unknown = pa.nulls(entries.num_rows, pa.float32())
    some = pa.array([None, -0.5], pa.float32())
    for name, values in (("drift_motion", unknown), ("drift_cast", some)):
        where = entries.schema.get_field_index(name)
        entries = entries.set_column(where, entries.schema.field(where), values)
    parts = figures(store, entries)["parts"]
    assert parts.keys() == DRIFT_PARTS.keys() - {"motion"}
    assert parts["cast"] == -0.5
    assert "rewrite_models" not in figures(store, entries.slice(0, 1))


# ---------------------------------------------------------------- with distrust


def test_another_table_that_is_there_is_left_alone(tiny, tmp_path):
    made = publish(tiny, tmp_path / "out", "r1", where="drift > 0.7")
    shutil.copytree(tiny.root / "store", tmp_path / "store")
    shutil.copytree(tiny.root / "manifests", tmp_path / "manifests")
    before = contents(tmp_path / "store")
    with pytest.raises(StoreError, match="holds another"):
        restore_round(made.rounds["r1"], tmp_path / "out", tmp_path / "store", tmp_path / "manifests")
    assert contents(tmp_path / "store") == before


def test_files_that_are_not_what_they_should_be(tiny, tmp_path):
    out = tmp_path / "out"
    one = publish(tiny, out, "r1").rounds["r1"]
    path = out / "tables/r1/rollouts-00000-of-00001.parquet"
    table = pq.read_table(path)

    def refused(changed, said):
        pq.write_table(changed, path)
        with pytest.raises(StoreError, match=said):
            restore_round(one, out, tmp_path / "store", tmp_path / "manifests")
        with pytest.raises(StoreError, match="is not what"):
            check_files(one, out)
        assert not (tmp_path / "store" / "rollouts_r1.lance").exists()
        assert not (tmp_path / "manifests" / "rollouts_r1.json").exists()

    def column(name, values):
        where = table.schema.get_field_index(name)
        return table.set_column(where, table.schema.field(where), pa.array(values, table[name].type))

    refused(table.drop_columns(["rng_name"]), "other columns")
    refused(table.slice(1), "hold 1 rows")
    refused(column("rollout_id", ["../../etc/passwd", "rollout-r1-1"]), "the rollout_id '../../etc/passwd'")
    refused(column("rollout_id", ["rollout-r1-0", "rollout-r1-0"]), "ascending")
    refused(column("round", ["r1", "r2"]), "another round")
    refused(column("rng_name", ["other", "rollout/r1/1"]), "says")
    path.write_bytes(b"PAR1 not")
    with pytest.raises(StoreError, match="cannot read"):
        restore_round(one, out, tmp_path / "store", tmp_path / "manifests")


@pytest.mark.parametrize(
    "path",
    ["../data/r1/a-00000-of-00001.parquet", "/etc/passwd", "data/r2/a-00000-of-00001.parquet", "data/r1/a.pkl",
     "data/r1/../r1/a-00000-of-00001.parquet", "tables/r1/clips-00000-of-00001.parquet\n"],
)  # fmt: skip
def test_no_path_leads_elsewhere(path):
    one = Round("r1", [File(path, "0" * 64, 1, 1)], {})
    with pytest.raises(StoreError, match=r"no path of round r1"):
        parse(Publication({"r1": one}).text(), FILE)


def test_publication_json_that_is_none(tiny, tmp_path):
    made = publish(tiny, tmp_path, "r1")
    told = json.loads(made.text())
    one = made.rounds["r1"]
    for text in (
        b"\xff", "[]", "{", "{}", json.dumps(told | {"version": 9}), json.dumps(told | {"schema_version": 1}),
        json.dumps(told | {"rounds": {"r1": 3}}), json.dumps(told | {"rounds": []}),
        json.dumps(told | {"rounds": {"../r1": told["rounds"]["r1"]}}),
        Publication({"r1": replace(one, files=[replace(one.files[0], sha256="x")])}).text(),
        Publication({"r1": replace(one, files=[replace(one.files[0], split="<b>")])}).text(),
        Publication({"r1": replace(one, tables={"seed": one.tables["clips_r1"]})}).text(),
        made.text().replace(one.digest, "0" * 64),
    ):  # fmt: skip
        with pytest.raises(StoreError, match=r"publication\.json cannot be read"):
            parse(text, FILE)

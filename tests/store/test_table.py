import json
import os
import random
import subprocess
import sys
import threading
import time

import lance
import numpy as np
import pyarrow as pa
import pytest

from store import dataset
from store.latents import pack_latents, unpack_latents
from store.schema import (
    CLIPS,
    DRIFT_PARTS,
    FEATURES,
    ROLLOUTS,
    RUNS,
    SCHEMA_VERSION,
    SCORES,
    SEED,
    VERSION_KEY,
    table_schema,
)  # fmt: skip
from store.table import StoreError, WorkingTable, content_manifest, read_manifest, read_table, table_names

NAME = "scores_r1"


def score(number: int, **changes) -> dict:
    curve = [float(number), 0.25, 1 / 3]
    return {
        "rollout_id": f"rollout-{number:016x}",
        "round": "r1",
        "scorer": "handmade@1",
        **dict.fromkeys(FEATURES, curve),
        **{f"drift_{part}": 0.2 * number for part in DRIFT_PARTS},
        "drift": 0.2 * number,
        "gates": "",
        "was_derived_from": [f"rollout-{number:016x}"],
        "was_generated_by": "run-0",
        **changes,
    }


def ids(numbers) -> list[str]:
    return [f"rollout-{n:016x}" for n in numbers]


def working(folder) -> WorkingTable:
    return WorkingTable(folder, NAME, SCORES, "rollout_id")


def seal(table, root, numbers):
    return table.seal(root / "store", root / "manifests" / f"{NAME}.json", ids(numbers))


def tree(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("schema", [SEED, ROLLOUTS, SCORES, CLIPS, RUNS])
def test_every_column_says_what_it_means(schema):
    assert schema.metadata[VERSION_KEY] == str(SCHEMA_VERSION).encode()
    assert all(field.metadata[b"doc"] for field in schema)


def test_resume_makes_only_what_is_missing(tmp_path):
    table = working(tmp_path)
    assert table.count() == 0
    assert table.missing(ids([2, 1])) == ids([2, 1])
    table.upsert([score(1), score(4)])
    assert working(tmp_path).missing(ids([9, 4, 2, 1, 0])) == ids([9, 2, 0])


def test_upsert_replaces_by_key(tmp_path):
    table = working(tmp_path)
    table.upsert([score(1), score(2)])
    table.upsert([score(2, scorer="handmade@2"), score(3)])
    assert table.count() == 3
    assert table.read(["scorer"], ids([3, 2, 1]))["scorer"].to_pylist() == [
        "handmade@1",
        "handmade@2",
        "handmade@1",
    ]


WRITER = """
import sys
sys.path[:0] = {paths!r}
from test_table import score, working
from pathlib import Path
me = int(sys.argv[1])
table = working(Path(sys.argv[2]))
for start in range(0, 12, 3):
    table.upsert([score(start + n, scorer=f"writer@{{me}}") for n in range(6)])
"""


def test_processes_and_threads_upserting_the_same_keys_neither_lose_nor_double(tmp_path, monkeypatch):
    code = WRITER.format(paths=[os.path.dirname(__file__), os.getcwd()])
    command = [sys.executable, "-c", code]
    processes = [subprocess.Popen([*command, str(n), str(tmp_path)]) for n in range(3)]
    threads = [
        threading.Thread(target=working(tmp_path).upsert, args=([score(n) for n in range(k, k + 4)],)) for k in range(4)
    ]
    failures = []
    monkeypatch.setattr(threading, "excepthook", failures.append)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert working(tmp_path).read(["rollout_id"])["rollout_id"].to_pylist() == ids(range(15))


THOUSAND = """
import sys
sys.path[:0] = {paths!r}
from pathlib import Path
from test_table import score, working

me = int(sys.argv[1])
table = working(Path(sys.argv[2]))
for n in range(1000):  # half of the keys are a neighbour's too
    table.upsert([score(500 * me + n, scorer=f"writer@{{me}}")])
"""


def test_four_processes_of_a_thousand_upserts_neither_lose_nor_double(tmp_path):
    code = THOUSAND.format(paths=[os.path.dirname(__file__), os.getcwd()])
    writers = [subprocess.Popen([sys.executable, "-c", code, str(n), str(tmp_path)]) for n in range(4)]
    assert [writer.wait(120) for writer in writers] == [0] * 4
    table = working(tmp_path)
    rows = table.read(["rollout_id", "scorer"]).to_pylist()
    assert [row["rollout_id"] for row in rows] == ids(range(2500))
    for number, row in enumerate(rows):
        wrote = {f"writer@{me}" for me in range(4) if 500 * me <= number < 500 * me + 1000}
        assert row["scorer"] in wrote
    manifest = seal(table, tmp_path, range(2500))
    assert manifest.rows == 2500
    assert read_table(tmp_path / "store", NAME, ["rollout_id"])["rollout_id"].to_pylist() == ids(range(2500))


def test_equal_content_gives_the_same_manifest_bytes_however_it_was_written(tmp_path):
    a, b = working(tmp_path / "a"), working(tmp_path / "b")
    a.upsert([score(n) for n in range(20)])
    shuffled = random.Random(0).sample(range(25), 25)
    for start in range(0, 25, 4):
        b.upsert([score(n, scorer="old@0") for n in shuffled[start : start + 4]])
    b.upsert([score(n) for n in shuffled])
    seal(a, tmp_path / "a", range(20))
    seal(b, tmp_path / "b", reversed(range(20)))
    manifests = [(tmp_path / side / "manifests" / f"{NAME}.json").read_bytes() for side in "ab"]
    assert manifests[0] == manifests[1]
    assert content_manifest(tmp_path / "b/store", NAME) == read_manifest(tmp_path / "a/manifests" / f"{NAME}.json")


@pytest.mark.parametrize(
    "change",
    [{"gates": "black"}, {"drift": 0.2000001}, {"oracle_color_error": 0.0}, {"motion": [1.0, 0.25]}, {"motion": []}],
)
def test_any_change_of_content_changes_the_digest(tmp_path, change):
    a, b = working(tmp_path / "a"), working(tmp_path / "b")
    a.upsert([score(1), score(2)])
    b.upsert([score(1, **change), score(2)])
    assert seal(a, tmp_path / "a", [1, 2]).digest != seal(b, tmp_path / "b", [1, 2]).digest


def test_values_swapped_between_rows_change_the_digest(tmp_path):
    a, b = working(tmp_path / "a"), working(tmp_path / "b")
    a.upsert([score(1, gates="x"), score(2, gates="y")])
    b.upsert([score(1, gates="y"), score(2, gates="x")])
    assert seal(a, tmp_path / "a", [1, 2]).digest != seal(b, tmp_path / "b", [1, 2]).digest


def test_sealed_table_is_sorted_one_version_one_fragment_without_extras(tmp_path):
    import lancedb  # slow to import, so not for the writers above

    table = working(tmp_path)
    for n in (3, 1, 7, 2):
        table.upsert([score(n)])
    manifest = seal(table, tmp_path, [1, 2, 3])
    dataset = lance.dataset(str(tmp_path / "store" / f"{NAME}.lance"))
    assert (manifest.rows, dataset.version, len(dataset.get_fragments())) == (3, 1, 1)
    assert dataset.to_table()["rollout_id"].to_pylist() == ids([1, 2, 3])
    assert dataset.schema.equals(SCORES, check_metadata=True)
    assert os.listdir(tmp_path / "store") == [f"{NAME}.lance"]
    assert lancedb.connect(str(tmp_path / "store")).open_table(NAME).count_rows() == 3


def test_seal_names_what_is_missing_and_leaves_the_store_alone(tmp_path):
    table = working(tmp_path)
    table.upsert([score(1)])
    with pytest.raises(StoreError, match="2 of 3 rows are missing: rollout-0000000000000002, rollout-"):
        seal(table, tmp_path, [1, 2, 3])
    with pytest.raises(StoreError, match="doubled"):
        seal(table, tmp_path, [1, 1])
    assert not (tmp_path / "store").exists()
    assert not (tmp_path / "manifests").exists()


def test_an_empty_table_seals(tmp_path):
    assert seal(working(tmp_path), tmp_path, []).rows == 0
    assert read_table(tmp_path / "store", NAME).num_rows == 0


def test_writers_that_create_the_table_at_the_same_moment_lose_nothing(tmp_path):
    """Lance's own create lets a late creator overwrite the rows of an early one."""
    for attempt in range(5):
        barrier = threading.Barrier(4)
        done = []

        def write(k, folder=tmp_path / str(attempt), barrier=barrier, done=done):
            barrier.wait()
            working(folder).upsert([score(k)])
            done.append(k)

        threads = [threading.Thread(target=write, args=(k,)) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(done) == [0, 1, 2, 3]
        assert working(tmp_path / str(attempt)).count() == 4


class Crash(BaseException):
    pass


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("call", range(3))
def test_seal_interrupted_at_any_step_finishes_when_repeated(tmp_path, monkeypatch, call, before):
    """Renames are the steps: old table out of the way, manifest in; plus a crash while rows are written."""
    old = working(tmp_path / "old")
    old.upsert([score(9)])
    seal(old, tmp_path, [9])
    clean = working(tmp_path / "clean")
    clean.upsert([score(n) for n in range(5)])
    want = seal(clean, tmp_path / "clean", range(5))

    table = working(tmp_path / "work")
    table.upsert([score(n) for n in range(5)])
    steps = iter(range(100))
    replace, write = os.replace, lance.write_dataset

    def crashing(real):
        def wrapped(*args, **kwargs):
            crash = next(steps) == call
            if crash and before:
                raise Crash
            result = real(*args, **kwargs)
            if crash:
                raise Crash
            return result

        return wrapped

    manifest_path = tmp_path / "manifests" / f"{NAME}.json"
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", crashing(replace))
        patch.setattr(lance, "write_dataset", crashing(write))
        with pytest.raises(Crash):
            seal(table, tmp_path, range(5))
    if manifest_path.exists():  # a manifest never speaks of another table than the one beside it
        assert content_manifest(tmp_path / "store", NAME) == read_manifest(manifest_path)
    assert seal(working(tmp_path / "work"), tmp_path, range(5)) == want == read_manifest(manifest_path)
    assert content_manifest(tmp_path / "store", NAME) == want
    assert os.listdir(tmp_path / "store") == [f"{NAME}.lance"]


def test_what_a_killed_seal_left_behind_is_cleared(tmp_path):
    """SIGKILL runs no clean-up: half a new table, the old one set aside, half a manifest."""
    table = working(tmp_path / "work")
    table.upsert([score(1)])
    for left in (f"{NAME}.lance/data", f"{NAME}.old/data"):
        (tmp_path / "store/.sealing" / left).mkdir(parents=True)
        (tmp_path / "store/.sealing" / left / "x.lance").write_bytes(b"half")
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests" / f".{NAME}.json.tmp").write_text("{")
    manifest = seal(table, tmp_path, [1])
    assert content_manifest(tmp_path / "store", NAME) == manifest
    assert os.listdir(tmp_path / "store") == [f"{NAME}.lance"]
    assert os.listdir(tmp_path / "manifests") == [f"{NAME}.json"]


def make_newer(path) -> None:
    schema = SCORES.with_metadata({VERSION_KEY: str(SCHEMA_VERSION + 1).encode()})
    lance.write_dataset(schema.empty_table(), str(path / f"{NAME}.lance"))


def test_a_newer_schema_is_refused_and_left_untouched(tmp_path):
    table = working(tmp_path / "work")
    table.upsert([score(1)])
    (tmp_path / "store").mkdir()
    make_newer(tmp_path / "store")
    before = tree(tmp_path / "store")
    for attempt in (
        lambda: read_table(tmp_path / "store", NAME),
        lambda: seal(table, tmp_path, [1]),
    ):
        with pytest.raises(
            StoreError, match=f"newer bagger .store schema {SCHEMA_VERSION + 1}, this one reads up to {SCHEMA_VERSION}"
        ):
            attempt()
    assert tree(tmp_path / "store") == before


def test_an_older_schema_names_the_command_that_brings_it_up_and_may_be_sealed_over(tmp_path):
    schema = SCORES.with_metadata({VERSION_KEY: str(SCHEMA_VERSION - 1).encode()})
    lance.write_dataset(schema.empty_table(), str(tmp_path / "store" / f"{NAME}.lance"))
    with pytest.raises(StoreError, match=f"older bagger .store schema {SCHEMA_VERSION - 1}.*`bagger migrate`"):
        read_table(tmp_path / "store", NAME)
    table = working(tmp_path / "work")
    table.upsert([score(1)])
    manifest = seal(table, tmp_path, [1])
    assert content_manifest(tmp_path / "store", NAME) == manifest
    path = tmp_path / "manifests" / f"{NAME}.json"
    path.write_text(path.read_text().replace(f'"schema_version": {SCHEMA_VERSION}', '"schema_version": 1'))
    with pytest.raises(StoreError, match="`bagger migrate`"):
        read_manifest(path)


def test_a_working_table_of_other_columns_is_refused(tmp_path):
    working(tmp_path).upsert([score(1)])
    with pytest.raises(StoreError, match="other columns.*delete"):
        WorkingTable(tmp_path, NAME, SCORES.remove(SCORES.get_field_index("gates")), "rollout_id")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([score(1, gates=None)], "row rollout-0000000000000001: gates .string. has no value"),
        ([score(1, gate="x")], "no column 'gate', did you mean 'gates'"),
        ([score(1, drift="far")], "column 'drift' must be float"),
        ([score(1, drift=float("inf"))], "drift is not finite"),
        ([score(1, drift=1e300)], "row rollout-0000000000000001: drift is not finite"),
        ([score(1, motion=[0.5, float("nan")])], "row rollout-0000000000000001: motion is not finite"),
        ([score(1, gates="\ud800")], "column 'gates' must be string"),
        ([score(1), score(1)], "twice in one write"),
    ],
)
def test_bad_rows_are_named_and_nothing_is_written(tmp_path, rows, message):
    table = working(tmp_path)
    with pytest.raises(StoreError, match=message):
        table.upsert([score(5), *rows])
    assert table.count() == 0


def test_a_fraction_is_no_whole_number(tmp_path, rows):
    schema, key = table_schema("seed")
    table = WorkingTable(tmp_path, "seed", schema, key)
    table.upsert([{**rows.seed()[0], "height": 16.0}])
    with pytest.raises(StoreError, match="row seed-1: height is 16.5; whole numbers only"):
        table.upsert([{**rows.seed()[1], "height": 16.5}])


def test_a_clock_that_is_set_back_makes_no_row_older(tmp_path, monkeypatch):
    table = working(tmp_path)
    table.upsert([score(1, scorer="first@1")])
    monkeypatch.setattr(time, "time_ns", lambda: 1)
    table.upsert([score(1, scorer="second@1")])
    working(tmp_path).upsert([score(1, scorer="third@1")])
    assert table.read(["scorer"])["scorer"].to_pylist() == ["third@1"]


@pytest.mark.parametrize("killed", [False, True])
def test_without_an_exchange_of_folders_no_step_loses_the_older_table(tmp_path, monkeypatch, killed):
    """Some filesystems cannot: the old table steps aside, and comes back if the new one does not arrive."""
    old = working(tmp_path / "old")
    old.upsert([score(9)])
    want = seal(old, tmp_path, [9])
    table = working(tmp_path / "work")
    table.upsert([score(1)])
    replace = os.replace

    def failing(source, target):
        if str(source).endswith(f".sealing/{NAME}.lance"):
            raise OSError("no space left")
        replace(source, target)

    monkeypatch.setattr(dataset, "exchange", lambda one, other: False)
    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="no space left"):
        seal(table, tmp_path, [1])
    monkeypatch.setattr(os, "replace", replace)
    if killed:  # SIGKILL between the two renames
        (tmp_path / "store/.sealing").mkdir()
        replace(tmp_path / f"store/{NAME}.lance", tmp_path / f"store/.sealing/{NAME}.old")
        with dataset.staged(tmp_path / "store", NAME):
            pass
    assert content_manifest(tmp_path / "store", NAME) == want
    seal(table, tmp_path, [1])
    assert read_table(tmp_path / "store", NAME)["rollout_id"].to_pylist() == ids([1])
    assert os.listdir(tmp_path / "store") == [f"{NAME}.lance"]


def test_nan_in_a_nullable_column_is_null(tmp_path):
    table = working(tmp_path)
    table.upsert([score(1, oracle_color_error=float("nan"))])
    assert table.read(["oracle_color_error"]).to_pylist() == [{"oracle_color_error": None}]


def test_reading_names_what_is_not_there(tmp_path):
    table = working(tmp_path / "work")
    table.upsert([score(1)])
    seal(table, tmp_path.parent / tmp_path.name, [1])
    tmp_path = tmp_path / "store"
    with pytest.raises(StoreError, match="dvc repro correct@r2.*dvc pull"):
        read_table(tmp_path, "clips_r2")
    with pytest.raises(StoreError, match="did you mean 'scores_r1'"):
        read_table(tmp_path, "score_r1")
    with pytest.raises(StoreError, match="no column 'drifts', did you mean 'drift'"):
        read_table(tmp_path, NAME, ["drifts"])
    with pytest.raises(StoreError, match="no row rollout-000000000000000f, did you mean"):
        read_table(tmp_path, NAME, ids=ids([15]))
    with pytest.raises(StoreError, match="has no row rollout-000000000000000f"):
        table.read(ids=ids([15]))
    assert table_names(tmp_path) == [NAME]
    assert table_names(tmp_path / "none") == []


def test_a_damaged_table_or_manifest_is_one_clear_error(tmp_path):
    (tmp_path / f"{NAME}.lance").mkdir()
    with pytest.raises(StoreError, match="cannot read table"):
        read_table(tmp_path, NAME)
    lance.write_dataset(pa.table({"rollout_id": ["x"]}), str(tmp_path / "scores_r2.lance"))
    with pytest.raises(StoreError, match="not a table of this store"):
        read_table(tmp_path, "scores_r2")
    path = tmp_path / "m.json"
    with pytest.raises(StoreError, match="dvc pull"):
        read_manifest(path)
    path.write_text(json.dumps({"rows": 1}))
    with pytest.raises(StoreError, match="damaged"):
        read_manifest(path)


def test_latents_round_trip_in_float16():
    latents = np.random.default_rng(0).normal(size=(3, 5, 2, 2)).astype(np.float32).transpose(0, 1, 3, 2)
    data, shape = pack_latents(latents)
    assert shape == [3, 5, 2, 2]
    assert len(data) == 2 * latents.size
    assert np.array_equal(unpack_latents(data, shape), latents.astype(np.float16))
    with pytest.raises(StoreError, match="not finite"):
        pack_latents(latents * 1e6)
    with pytest.raises(StoreError, match="C,F,h,w"):
        pack_latents(latents[0])


def test_a_folder_that_lance_has_only_begun_is_no_table_yet(tmp_path):
    (tmp_path / "catalog.lance" / "data").mkdir(parents=True)
    (tmp_path / "seed.lance" / "_versions").mkdir(parents=True)  # damaged: it has been one
    assert table_names(tmp_path) == ["seed"]

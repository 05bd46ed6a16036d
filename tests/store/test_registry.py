"""The registry, in a folder and on a real S3-speaking server: nothing lost, nothing doubled, nothing half there.

The server (tests/s3.py) is moto's; that it refuses a second conditional write, on which Lance's commits rest, is
asserted first.
"""

import http.server
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lance
import pyarrow as pa
import pytest
from botocore.exceptions import ClientError

from store import Store, registry
from store.audit import audit
from store.catalog import build_catalog
from store.dataset import open_dataset
from store.digest import bytes_sha256
from store.errors import StoreError
from store.manifest import Tally
from store.query import plain_rows
from store.registry import TABLES, register, registrations, upsert
from store.remote import storage_options
from store.schema import USES

ROOT = Path(__file__).parents[2]
DATA = ("seed", "rollouts", "rewrites", "scores", "clips", "runs", "uses", "catalog")


@pytest.fixture(params=["folder", "s3"])
def place(request, tmp_path):
    """An empty place for a registry."""
    if request.param == "folder":
        return str(tmp_path / "registry")
    request.getfixturevalue("s3")
    return f"s3://team/{bytes_sha256(str(tmp_path).encode())[:16]}"


def content(uri: str) -> dict[str, str]:
    """Content digest of every table; that of registrations without times."""
    digests = {}
    for name in DATA:
        dataset = open_dataset(f"{uri}/{name}.lance")
        tally = Tally(name, TABLES[name][0])
        for _ in tally.over(dataset.to_batches(columns=TABLES[name][0].names)):
            pass
        digests[name] = tally.manifest().digest
    claims = registrations(uri).drop_columns("registered_at").to_pylist()
    return digests | {"registrations": str(claims)}


def versions(uri: str) -> dict[str, int]:
    return {name: open_dataset(f"{uri}/{name}.lance").version for name in TABLES}


def start(code: str, *arguments: object) -> subprocess.Popen:
    """A process that says `ready` when all is imported, and goes on when told."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    child = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    return child


def go(children: list[subprocess.Popen]) -> None:
    for child in children:
        assert child.stdout.readline() == "ready\n", child.stderr.read()
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()


def end(children: list[subprocess.Popen]) -> None:
    for child in children:
        _, said = child.communicate(timeout=100)
        assert child.returncode == 0, said


REGISTER = """
import sys
from store import Store
from store.registry import register
import lance
print("ready", flush=True)
sys.stdin.readline()
register(Store(sys.argv[1]), sys.argv[2], sys.argv[3], batch_bytes=int(sys.argv[4]))
"""


# ----------------------------------------------------------------------------------------------------- many writers


def test_the_server_refuses_a_second_conditional_write(s3):
    client = s3.client()
    client.put_object(Bucket="team", Key="once", Body=b"first", IfNoneMatch="*")
    with pytest.raises(ClientError, match="PreconditionFailed"):
        client.put_object(Bucket="team", Key="once", Body=b"second", IfNoneMatch="*")
    assert client.get_object(Bucket="team", Key="once")["Body"].read() == b"first"


UPSERT = """
import sys
import pyarrow as pa
from store.registry import upsert
from store.schema import USES
uri, worker = sys.argv[1], int(sys.argv[2])
row = {"plan_id": "plan-0", "model_digest": f"model-{worker}", "kind": "seed", "clip_round": "r0", "round": "r1"}
print("ready", flush=True)
sys.stdin.readline()
first = worker * 500
for start in range(first, first + 1000, 50):
    rows = [row | {"use_id": f"use-{n:05d}", "clip_id": f"seed-{n}", "steps": [n]} for n in range(start, start + 50)]
    upsert(uri, "uses", pa.Table.from_pylist(rows, schema=USES), keep=False)
"""


def test_four_processes_upsert_1000_rows_each_with_overlapping_keys(place):
    """Batches of 50 rows: 80 commits that compete, and the table's making. Half the keys have two writers."""
    children = [start(UPSERT, place, worker) for worker in range(4)]
    go(children)
    end(children)
    found = open_dataset(f"{place}/uses.lance").to_table()
    assert sorted(found["use_id"].to_pylist()) == [f"use-{n:05d}" for n in range(2500)]  # 0 lost, 0 doubled
    for use_id, model, steps in zip(*(found[c].to_pylist() for c in ("use_id", "model_digest", "steps")), strict=True):
        number = int(use_id.removeprefix("use-"))
        assert steps == [number]
        assert int(model.removeprefix("model-")) in {number // 500, number // 500 - 1}


def test_threads_that_make_one_table_at_once_lose_no_row(place):
    """Lance's own creation does: of two at once the second overwrites what the first has written."""
    row = {"plan_id": "p", "model_digest": "m", "kind": "seed", "clip_round": "r0", "round": "r1", "steps": [0]}
    for trial in range(4):
        uri, together = f"{place}/{trial}", threading.Barrier(4)

        def write(number, uri=uri, together=together):
            rows = [row | {"use_id": one, "clip_id": one} for one in ("shared", f"own-{number}")]
            together.wait()
            upsert(uri, "uses", pa.Table.from_pylist(rows, schema=USES))

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(write, range(4)))
        found = open_dataset(f"{uri}/uses.lance").to_table()["use_id"].to_pylist()
        assert sorted(found) == ["own-0", "own-1", "own-2", "own-3", "shared"]


def test_experiments_that_share_clips_register_at_once(place, tiny, tmp_path):
    """Two processes, the same project under two names: the shared rows once, the entries of each."""
    one_by_one = str(tmp_path / "quiet")
    names = ["first", "second"]
    for name in names:
        register(Store(tiny.store), one_by_one, name)
    children = [start(REGISTER, tiny.store, place, name, 100) for name in names]
    go(children)
    end(children)
    assert content(place) == content(one_by_one)


def test_of_two_that_register_different_rounds_under_one_name_one_is_refused(place, tiny, tiny_copy, rows):
    rescored(tiny_copy, rows)
    together = threading.Barrier(2)

    def attempt(store):
        together.wait()
        try:
            return register(Store(store), place, "same").rounds["r2"]
        except StoreError as error:
            return str(error)

    with ThreadPoolExecutor(2) as pool:
        told = sorted(pool.map(attempt, [tiny.store, tiny_copy.store]))
    assert told[0] == "new"
    assert "claimed" in told[1] or "with other clips or scores" in told[1]
    drifts = Store(place).read("catalog", ["drift"], where="round = 'r2'")["drift"].to_pylist()
    assert sorted(round(one, 3) for one in drifts) in ([0.1, 0.4], [0.2, 0.8])


def test_who_lost_a_name_on_the_way_leaves_the_others_round_whole(place, tiny):
    """One claims a round and is slow; another takes its place; the slow one comes back to enter its clips."""
    slow = registry._entries(Store(tiny.store), "same", "r2")
    fast = slow.slice(0, 1)
    claim = registry._claim(place, "same", "r2", slow, False, {})
    taken = registry._claim(place, "same", "r2", fast, True, {})
    registry._enter(place, "same", "r2", fast, taken)
    with pytest.raises(StoreError, match="somebody else registers it too"):
        registry._enter(place, "same", "r2", slow, claim)
    assert Store(place).read("catalog", registry.REGISTRY_CATALOG.names).equals(fast)


def rescored(project, rows) -> None:
    """The project again, its round r2 measured as twice as bad by another run."""
    worse = [one | {"drift": 2 * one["drift"], "was_generated_by": "run-score-r2-again"} for one in rows.scores("r2")]
    (project.root / "work").rename(project.root / "work-before")
    rows.seal(project.root, "scores_r2", worse)
    build_catalog(project.store, ("r1", "r2"), project.runs, project.files)


# -------------------------------------------------------------------------------------------------- what is there then


def test_questions_to_a_registry_have_the_project_s_answers(place, tiny):
    register(Store(tiny.store), place, "reach")
    project, shared = Store(tiny.store), Store(place)
    assert shared.is_registry
    assert not project.is_registry
    assert shared.names() == sorted(DATA)
    columns = ["clip_id", "kind", "round", "drift", "drift_part", "verdict", "prompt", "look", "words", "video_sha256"]
    for question in ({"kind": "all", "sort": "-drift"}, {"round": "r2"}, {"where": "drift > 0.3 and kind != 'seed'"}):
        asked = [store.clips(columns=columns, **question) for store in (project, shared)]
        assert asked[0].num_rows > 1
        assert plain_rows(asked[0]) == plain_rows(asked[1])
    for one in ("clip-r1-0", "seed-1", "rollout-r2-1"):
        assert project.video(one) == shared.video(one)
    assert set(shared.read("catalog", ["table"])["table"].to_pylist()) == {"seed", "clips"}
    assert shared.read("catalog", ["entry_id"], where="clip_id = 'clip-r1-0'")["entry_id"].to_pylist() == [
        "reach/r1/clip-r1-0"
    ]


def test_registering_again_writes_nothing_and_small_batches_give_the_same(place, tiny, tmp_path):
    first = register(Store(tiny.store), place, "reach", batch_bytes=1)
    data = dict.fromkeys(["seed", "rollouts", "rewrites", "scores", "clips"], 4)
    assert first.written == {**data, "runs": 16, "uses": 15, "catalog": 8}
    before = versions(place)
    again = register(Store(tiny.store), place, "reach")
    assert again.written == {}
    assert set(again.rounds.values()) == {"same"}
    assert versions(place) == before
    register(Store(tiny.store), tmp_path / "large", "reach")
    assert content(place) == content(str(tmp_path / "large"))


def test_a_second_name_writes_its_entries_and_nothing_else(tmp_path, tiny):
    register(Store(tiny.store), tmp_path, "one")
    before = versions(str(tmp_path))
    dry = register(Store(tiny.store), tmp_path, "two", dry_run=True)
    assert versions(str(tmp_path)) == before
    assert dry == register(Store(tiny.store), tmp_path, "two")
    assert dry.written == {"catalog": 8}
    assert {name for name, version in versions(str(tmp_path)).items() if version != before[name]} == {
        "catalog",
        "registrations",
    }


def test_only_the_rounds_asked_for_and_the_seed_data_become_visible(tmp_path, tiny):
    register(Store(tiny.store), tmp_path, "reach", ["r2"])
    assert Store(tmp_path).read("clips", ["clip_id"])["clip_id"].to_pylist() == ["clip-r2-0", "clip-r2-1"]
    register(Store(tiny.store), tmp_path, "reach", ["r1"])
    assert [(one["round"], one["clips"], one["state"]) for one in registrations(tmp_path).to_pylist()] == [
        ("r0", 4, "complete"),
        ("r1", 2, "complete"),
        ("r2", 2, "complete"),
    ]
    with pytest.raises(StoreError, match="no round 'r3' in the catalog.*r0, r1, r2"):
        register(Store(tiny.store), tmp_path, "reach", ["r3"])


def test_a_round_with_other_content_is_refused_or_swapped_in_one_commit(place, tiny, tiny_copy, rows):
    register(Store(tiny.store), place, "reach")
    rescored(tiny_copy, rows)
    before = content(place)
    with pytest.raises(StoreError, match="round r2 of experiment 'reach'.* 2 of the same id; --replace"):
        register(Store(tiny_copy.store), place, "reach")
    assert content(place) == before
    catalog = versions(place)["catalog"]
    told = register(Store(tiny_copy.store), place, "reach", replace=True)
    assert told.rounds == {"r0": "same", "r1": "same", "r2": "replaced"}
    assert versions(place)["catalog"] == catalog + 1
    assert [one["drift"] for one in plain_rows(Store(place).clips(round="r2", columns=["drift"]))] == [0.8, 0.2]
    assert {one["state"] for one in registrations(place).to_pylist()} == {"complete"}


def test_replacing_lets_entries_go_that_are_no_longer_there(tmp_path, tiny, tiny_copy, rows):
    """Other experiments' entries and other rounds stay."""
    uri = tmp_path / "registry"
    register(Store(tiny.store), uri, "reach")
    register(Store(tiny.store), uri, "other")
    (tiny_copy.root / "work").rename(tiny_copy.root / "work-before")
    rows.seal(tiny_copy.root, "clips_r2", rows.clips("r2", tiny_copy.models["r1"])[:1])
    build_catalog(tiny_copy.store, ("r1", "r2"), tiny_copy.runs, tiny_copy.files)
    register(Store(tiny_copy.store), uri, "reach", replace=True)
    entries = Store(uri).read("catalog", ["entry_id"], where="round != 'r0'")["entry_id"].to_pylist()
    assert sorted(entries) == [
        "other/r1/clip-r1-0",
        "other/r1/clip-r1-1",
        "other/r2/clip-r2-0",
        "other/r2/clip-r2-1",
        "reach/r1/clip-r1-0",
        "reach/r1/clip-r1-1",
        "reach/r2/clip-r2-0",
    ]


def test_scores_of_two_measurements_are_both_kept(tmp_path, tiny, tiny_copy, rows):
    """And registering the first again does not bring its scores over the second's."""
    rescored(tiny_copy, rows)
    uri = tmp_path / "registry"
    for store, name in ((tiny.store, "mild"), (tiny_copy.store, "strict"), (tiny.store, "mild")):
        register(Store(store), uri, name)
    scores = Store(uri).read("scores", ["rollout_id", "was_generated_by", "drift"]).to_pylist()
    assert len(scores) == 6
    of_one = {s["was_generated_by"]: round(s["drift"], 3) for s in scores if s["rollout_id"] == "rollout-r2-0"}
    assert of_one == {"run-score-r2": 0.4, "run-score-r2-again": 0.8}
    entries = Store(uri).read("catalog", ["experiment", "drift"], where="clip_id = 'clip-r2-0'").to_pylist()
    assert {one["experiment"]: round(one["drift"], 3) for one in entries} == {"mild": 0.4, "strict": 0.8}


def test_rewrites_come_with_their_rounds(tmp_path, tiny, tiny_copy, rows):
    """Once for each run that made them; of what changed code found under one run, the later counts."""
    uri = tmp_path / "registry"
    columns = ["rewrite_id", "was_generated_by"]
    register(Store(tiny.store), uri, "reach", ["r2"])
    assert [tuple(one.values()) for one in Store(uri).read("rewrites", columns).to_pylist()] == [
        ("rewrite-0", "run-rewrite-r2"),
        ("rewrite-1", "run-rewrite-r2"),
    ]
    assert register(Store(tiny.store), uri, "reach").written["rewrites"] == 2
    registered = Store(uri)
    assert registered.open("rewrites").count_rows() == 4
    tree = registered.lineage("rewrite-1")
    assert tree["model_id"] == "team/tiny-llm"
    assert [one["id"] for one in tree["parents"]] == ["run-rewrite-r1", "run-rewrite-r2"]
    assert [one["id"] for one in registered.descendants("rewrite-1")["children"]] == ["clip-r1-1", "clip-r2-1"]
    assert registered.clips(run="run-rewrite-r1")["clip_id"].to_pylist() == ["clip-r1-0", "clip-r1-1"]
    assert registered.count(verdict=["parses", "passed"]) == 4

    (tiny_copy.root / "work").rename(tiny_copy.root / "work-before")
    failed = '[{"name": "parses", "pass": false, "detail": "no verb"}]'
    rows.seal(tiny_copy.root, "rewrites_r2", [one | {"verdicts": failed} for one in rows.rewrites("r2")])
    build_catalog(tiny_copy.store, ("r1", "r2"), tiny_copy.runs, tiny_copy.files)
    told = register(Store(tiny_copy.store), uri, "reach", replace=True)
    assert told.written == {"rewrites": 2, "catalog": 2}
    assert Store(uri).clips(verdict="parses", columns=["round"])["round"].to_pylist() == ["r2", "r2"]
    assert Store(uri).read("rewrites", ["verdicts"], "was_generated_by = 'run-rewrite-r2'")["verdicts"].to_pylist() == [
        failed,
        failed,
    ]
    assert audit(Store(uri), decode=False) == []


def test_what_no_id_holds_is_the_later_registration_s(tmp_path, tiny, tiny_copy, rows):
    """A licence, and a score that changed code gave under the same run: tables and catalog do not disagree."""
    uri = tmp_path / "registry"
    register(Store(tiny.store), uri, "reach")
    (tiny_copy.root / "work").rename(tiny_copy.root / "work-before")
    rows.seal(tiny_copy.root, "seed", [{**one, "license": "CC0-1.0"} for one in rows.seed()])
    rows.seal(tiny_copy.root, "scores_r2", [{**one, "drift": 3.5} for one in rows.scores("r2")])
    build_catalog(tiny_copy.store, ("r1", "r2"), tiny_copy.runs, tiny_copy.files)
    told = register(Store(tiny_copy.store), uri, "reach", replace=True)
    assert told.written == {"seed": 4, "scores": 2, "catalog": 2}
    registered = Store(uri)
    assert set(registered.read("seed", ["license"])["license"].to_pylist()) == {"CC0-1.0"}
    for table in ("scores", "catalog"):
        assert registered.read(table, ["drift"], where="round = 'r2'")["drift"].to_pylist() == [3.5, 3.5]
    assert register(Store(tiny_copy.store), uri, "reach").written == {}


def test_two_trainings_on_one_plan_both_have_their_uses(tmp_path, tiny, tiny_copy):
    runs = [dict(one) for one in tiny_copy.runs]
    (train,) = [one for one in runs if one["run_id"] == "run-train-r2"]
    train |= {"run_id": "run-train-r2-longer", "outputs": {"model_digest": "model-00000000000000ff"}}
    build_catalog(tiny_copy.store, ("r1", "r2"), runs, tiny_copy.files)
    uri = tmp_path / "registry"
    register(Store(tiny.store), uri, "one")
    register(Store(tiny_copy.store), uri, "two")
    uses = Store(uri).read("uses", where="clip_id = 'clip-r2-0'").to_pylist()
    assert {one["model_digest"] for one in uses} == {tiny.models["r2"], "model-00000000000000ff"}
    assert len({one["use_id"] for one in uses}) == 2


@pytest.mark.parametrize("order", [("2026-01-01", "2026-03-01"), ("2026-03-01", "2026-01-01")])
def test_of_two_runs_with_one_id_the_later_stays(tmp_path, tiny, tiny_copy, order):
    uri = tmp_path / "registry"
    for day in order:
        runs = [one | {"started_at_time": f"{day}T00:00:00+00:00"} for one in tiny_copy.runs]
        build_catalog(tiny_copy.store, ("r1", "r2"), runs, tiny_copy.files)
        register(Store(tiny_copy.store), uri, "reach")
    assert set(Store(uri).read("runs")["started_at_time"].to_pylist()) == {"2026-03-01T00:00:00+00:00"}


def test_the_same_id_with_another_video_is_refused_before_anything_is_written(tmp_path, tiny, tiny_copy, rows):
    uri = str(tmp_path / "registry")
    register(Store(tiny.store), uri, "reach")
    before = content(uri)
    other = rows.rollouts("r1", tiny_copy.models["r0"])
    other[1] |= {"video": b"another", "video_sha256": bytes_sha256(b"another")}
    (tiny_copy.root / "work").rename(tiny_copy.root / "work-before")
    rows.seal(tiny_copy.root, "rollouts_r1", other)
    with pytest.raises(StoreError, match="rollout-r1-1 is registered in .* with another video"):
        register(Store(tiny_copy.store), uri, "elsewhere")
    assert content(uri) == before


@pytest.mark.parametrize("name", ["", "a/b", "a'b", "a b", "x" * 65, "naïve", ".", ".."])
def test_names_that_are_none(tmp_path, tiny, name):
    with pytest.raises(StoreError, match="experiment .*a name is 1 to 64"):
        register(Store(tiny.store), tmp_path / "registry", name)
    assert not (tmp_path / "registry").exists()


def test_what_is_no_registry_and_what_is_no_project(tmp_path, tiny):
    with pytest.raises(StoreError, match="other columns than a registry's table catalog"):
        register(Store(tiny.store), tiny.store, "reach")
    register(Store(tiny.store), tmp_path, "reach")
    with pytest.raises(StoreError, match="is a registry itself"):
        register(Store(tmp_path), tmp_path / "other", "reach")
    with pytest.raises(StoreError, match="folder or s3://"):
        register(Store(tiny.store), "ftp://host/registry", "reach")
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="file is a file"):
        register(Store(tiny.store), tmp_path / "file", "reach")
    with pytest.raises(StoreError, match="nothing is registered in .*bagger register --to"):
        registrations(tmp_path / "none")


@pytest.mark.parametrize("uri", ["gs://user:secret@bucket/x", "s3://user:secret@bucket/x", "s3://", "s3://[bad/x"])
def test_addresses_that_cannot_be_meant(uri):
    with pytest.raises(StoreError, match="the address of a registry is s3://bucket/folder") as told:
        Store(uri).clips()
    assert "secret" not in str(told.value)


# ------------------------------------------------------------------------------------------------------------- killed


def check_visible_rounds_are_whole(uri: str) -> int:
    """How many rounds can be seen; each has all its clips, and every clip its row, its rollout and its seed clip."""
    store = Store(uri)
    if "catalog" not in store.names():
        return 0
    entries = store.read("catalog", ["round", "clip_id", "table", "rollout_id", "seed_clip_id"]).to_pylist()
    held = {
        base: set(store.read(base, [key])[key].to_pylist()) if store.has(base) else set()
        for base, key in (("seed", "clip_id"), ("clips", "clip_id"), ("rollouts", "rollout_id"))
    }
    rounds: dict[str, int] = {}
    for one in entries:
        rounds[one["round"]] = rounds.get(one["round"], 0) + 1
        assert one["clip_id"] in held[one["table"]]
        assert one["rollout_id"] is None or one["rollout_id"] in held["rollouts"]
        assert one["seed_clip_id"] is None or one["seed_clip_id"] in held["seed"]
    whole = {"r0": 4, "r1": 2, "r2": 2}
    assert rounds.items() <= whole.items()
    complete = {one["round"] for one in registrations(uri).to_pylist() if one["state"] == "complete"}
    assert complete == set(rounds)
    return len(rounds)


def written(uri: str, request: pytest.FixtureRequest) -> int:
    """Files or objects of a registry."""
    if not uri.startswith("s3://"):
        return sum(len(files) for _, _, files in os.walk(uri))
    prefix = uri.removeprefix("s3://team/") + "/"
    listed = request.getfixturevalue("s3").client().list_objects_v2(Bucket="team", Prefix=prefix)
    return listed["KeyCount"]


def test_killed_at_random_points_it_opens_and_the_rerun_ends_as_if_never_interrupted(place, tiny, request):
    """10 points in a folder, 3 on the server: at a number of files drawn evenly from all there will be."""
    whole, draw, seen = f"{place}/whole", random.Random(4), []
    register(Store(tiny.store), whole, "reach", batch_bytes=1)
    expected, files = content(whole), written(whole, request)
    points = 3 if place.startswith("s3") else 10
    for point in range(2 * points):
        uri = f"{place}/{point}"
        child = start(REGISTER, tiny.store, uri, "reach", 1)
        go([child])
        until = files * (point % points + draw.random()) / points
        while child.poll() is None and written(uri, request) < until:
            pass
        child.send_signal(signal.SIGKILL)
        child.communicate()
        rounds = check_visible_rounds_are_whole(uri)
        if child.returncode == -signal.SIGKILL:  # else it had just finished
            seen.append(rounds)
        register(Store(tiny.store), uri, "reach")
        assert check_visible_rounds_are_whole(uri) == 3
        assert content(uri) == expected
        if len(seen) == points:
            break
    assert len(seen) == points
    assert 0 in seen  # before the catalog
    if not place.startswith("s3"):  # where asking how far it is takes as long as the catalog does
        assert len(set(seen)) > 1  # and within it


# ---------------------------------------------------------------------------------------------------- fragments


def test_an_experiment_more_costs_one_fragment_in_the_catalog_a_round_and_none_in_the_data(tmp_path, tiny):
    """Tables with videos are not rewritten, however many experiments share them."""
    for number in range(5):
        register(Store(tiny.store), tmp_path, f"experiment-{number}")
    fragments = {name: len(open_dataset(tmp_path / f"{name}.lance").get_fragments()) for name in TABLES}
    one = {"seed": 1, "rollouts": 2, "rewrites": 2, "scores": 2, "clips": 2, "runs": 1, "uses": 1}
    assert fragments == one | {"catalog": 15, "registrations": 15}


def test_fragments_stay_few_while_many_register_at_once(place, tiny, monkeypatch):
    """The catalog is compacted under the feet of those that register; nothing is lost or doubled by it."""
    monkeypatch.setattr(registry, "FRAGMENTS", 3)
    names = [f"experiment-{number}" for number in range(4 if place.startswith("s3") else 8)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: register(Store(tiny.store), place, name), names))
    register(Store(tiny.store), place, "the-last")
    clips = Store(tiny.store).read("catalog", ["round", "clip_id"]).to_pylist()
    expected = [f"{name}/{one['round']}/{one['clip_id']}" for name in [*names, "the-last"] for one in clips]
    assert sorted(Store(place).read("catalog", ["entry_id"])["entry_id"].to_pylist()) == sorted(expected)
    assert len(open_dataset(f"{place}/catalog.lance").get_fragments()) <= 3
    assert {one["state"] for one in registrations(place).to_pylist()} == {"complete"}
    assert versions(place)["catalog"] > 3 * (len(names) + 1) + 1  # there was something to compact


# ------------------------------------------------------------------------------------------- credentials, and failures


class Refusing(http.server.BaseHTTPRequestHandler):
    """Answers as S3 answers a wrong signature: with the request that was signed, quoted."""

    heard: list[str] = []

    def do_GET(self):
        type(self).heard.append(self.headers.get("Authorization", ""))
        key = self.headers.get("Authorization", "").partition("Credential=")[2].partition("/")[0]
        body = (
            f"<Error><Code>SignatureDoesNotMatch</Code><AWSAccessKeyId>{key}</AWSAccessKeyId>"
            f"<StringToSign>{self.headers.get('Authorization')}</StringToSign></Error>"
        ).encode()
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_HEAD = do_PUT = do_POST = do_GET

    def log_message(self, *arguments):
        pass


@pytest.fixture
def refusing():
    Refusing.heard = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("how", ["keys", "profile", "endpoint for s3", "token"])
def test_credentials_come_from_the_usual_environment(refusing, tmp_path, monkeypatch, how):
    for name in [one for one in os.environ if one.startswith("AWS_")]:
        monkeypatch.delenv(name)
    (tmp_path / "credentials").write_text("[team]\naws_access_key_id = AKIAPROFILE\naws_secret_access_key = hush\n")
    (tmp_path / "config").write_text("[profile team]\nregion = eu-west-3\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", refusing)
    if how == "profile":
        monkeypatch.setenv("AWS_PROFILE", "team")
    else:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAENVIRONMENT")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
        monkeypatch.setenv("AWS_REGION" if how == "keys" else "AWS_DEFAULT_REGION", "eu-north-1")
    if how == "endpoint for s3":
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", refusing)
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    if how == "token":
        monkeypatch.setenv("AWS_SESSION_TOKEN", "for an hour")
    with pytest.raises(StoreError, match="does not accept the credentials for bucket 'team'") as caught:
        Store("s3://team/registry").names()
    scope = "AKIAPROFILE/{}/eu-west-3/s3" if how == "profile" else "AKIAENVIRONMENT/{}/eu-north-1/s3"
    day = time.strftime("%Y%m%d", time.gmtime())
    assert Refusing.heard
    assert all(scope.format(day) in one for one in Refusing.heard)
    assert all("x-amz-security-token" in one for one in Refusing.heard) == (how == "token")
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert "AKIA" not in str(caught.value)


def test_what_cannot_be_reached_is_said_in_a_few_seconds(s3, monkeypatch):
    def told(uri: str) -> str:
        begun = time.monotonic()
        with pytest.raises(StoreError) as caught:
            Store(uri).clips()
        assert time.monotonic() - begun < 12
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "no table at s3://team/nothing/catalog.lance; nothing is registered" in told("s3://team/nothing")
    assert "has no bucket 'nobody'" in told("s3://nobody/registry")
    assert "s3://bucket/folder; keys stand in the environment" in told("s3://KEY:SECRET@team/registry")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://user:password@127.0.0.1:1")
    assert "cannot reach the S3 server http://127.0.0.1:1 (" in told("s3://team/registry")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost:9000")
    assert "AWS_ENDPOINT_URL is 'localhost:9000'; expected http" in told("s3://team/registry")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert "no credentials for bucket 'team'" in told("s3://team/registry")


def test_the_commit_that_makes_a_table_fails_where_there_is_one(place):
    """Whatever happened between looking and committing; that no rows are lost rests on it."""
    row = {"plan_id": "p", "model_digest": "m", "kind": "seed", "clip_round": "r0", "round": "r1", "steps": [0]}
    upsert(place, "uses", pa.Table.from_pylist([row | {"use_id": "a", "clip_id": "a"}], schema=USES))
    address = f"{place}/uses.lance"
    empty = lance.LanceOperation.Overwrite(USES, [])
    with pytest.raises((OSError, ValueError)):
        lance.LanceDataset.commit(
            address, empty, read_version=0, max_retries=0, storage_options=storage_options(address)
        )
    assert open_dataset(address).count_rows() == 1

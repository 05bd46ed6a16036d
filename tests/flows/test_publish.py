"""Rounds published to a server that speaks the Hub's protocol, and read by the real `datasets` in fresh processes."""

import contextlib
import hashlib
import importlib.util
import itertools
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from flows import publish as publishing
from flows.fetch import FetchError, fetch
from flows.publish import Request, plan, to_folder, to_hub
from flows.server import HOME
from store import Store
from store.digest import bytes_sha256
from store.errors import StoreError
from store.hub import HubError
from store.publication import FILE
from store.published import publications
from store.schema import RUNS
from store.table import read_manifest
from store.video import decode_video, encode_video
from tests import conftest

NAME = "lab/clips"
# For every line it reads, a process of its own that publishes to the repository of that name: its id, then its status.
# They are forked off one that has only imported: to start thirty of them would take a minute.
PUBLISHER = """
import os, sys, traceback
from pathlib import Path
from flows import publish
import huggingface_hub.utils._http as http
http.time.sleep = lambda _: None
publish.histogram = lambda _: b"a picture"
for line in sys.stdin:
    child = os.fork()
    if not child:
        try:
            publish.to_hub(publish.Request("r1", line.strip(), allowed=("none",), store=Path(sys.argv[1])))
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def frames_of(number: int) -> np.ndarray:
    """A short video that moves; another for every number."""
    t, y, x = np.mgrid[0:3, 0:16, 0:16]
    return np.stack([(20 * t + 7 * y + number) % 256, (9 * x + 31 * number) % 256, 128 + 0 * t], -1).astype(np.uint8)


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A store of three rounds with real videos."""
    spec = importlib.util.spec_from_file_location("own_conftest", conftest.__file__)
    own = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(own)
    plain = own.media

    def media(name: str, number: int) -> dict:
        video = encode_video(frames_of(number), 8, 12)
        return plain(name, number) | {
            "video": video, "video_sha256": bytes_sha256(video),
            "frames_sha256": bytes_sha256(frames_of(number).tobytes()),
        }  # fmt: skip

    own.media, own.ROUNDS = media, ("r1", "r2", "r3")
    scores = own.score_rows
    own.score_rows = lambda name: [
        row | {"round": name, "rollout_id": f"rollout-{name}-{n}", "was_generated_by": f"run-score-{name}",
               "was_derived_from": [f"rollout-{name}-{n}"]}
        for n, row in enumerate(scores("r1"))
    ]  # fmt: skip
    return own.build(tmp_path_factory.mktemp("world"))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder that this test works in."""
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


@pytest.fixture
def project(world, here):
    """A copy of that store as a project's own."""
    shutil.copytree(world.root, here / "data", ignore=shutil.ignore_patterns("work"))
    return SimpleNamespace(root=here, store=here / "data" / "store", whole=world)


def ask(project, name: str, repo: str | None = NAME, **more) -> Request:
    return Request(name, repo, allowed=("none",), store=project.store, **more)


def fresh(hub, tmp_path, code: str, *arguments: str) -> str:
    """What a new process prints that has nothing but the Hub: no cache, none of this project's modules."""
    env = {one: value for one, value in os.environ.items() if not one.startswith(("HF_", "PYTHONPATH"))}
    env |= {**hub.environment, "HF_TOKEN": "hf_ada", "HF_HOME": str(tmp_path / f"home-{len(list(tmp_path.iterdir()))}")}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


LOAD = """
import hashlib, json, sys
from datasets import Video, load_dataset

repo, config, revision, streaming = sys.argv[1:5]
sets = load_dataset(repo, config, revision=revision or None, streaming=streaming == "yes")
found = {}
for split, rows in sets.items():
    assert isinstance(rows.features["video"], Video)
    for row in rows.cast_column("video", Video(decode=False)):
        digest = hashlib.sha256(row["video"]["bytes"]).hexdigest()
        found.setdefault(split, {})[row["clip_id"]] = [digest, row["prompt"], row["round"]]
print(json.dumps(found))
"""


def load(hub, tmp_path, config: str, revision: str = "", repo: str = NAME, streaming: bool = False) -> dict:
    return json.loads(fresh(hub, tmp_path, LOAD, repo, config, revision, "yes" if streaming else "no"))


def expected(project, name: str) -> dict:
    table = "seed" if name == "r0" else f"clips_{name}"
    rows = Store(project.store).read(table).to_pylist()
    return {one["clip_id"]: [one["video_sha256"], one["prompt"], name] for one in rows}


# ---------------------------------------------------------------- what others see


def test_three_rounds_one_after_the_other_each_loads_at_its_tag(hub, project, tmp_path):
    for name in ("r1", "r2", "r3"):
        made = to_hub(ask(project, name, include_seed=name == "r2"))
        assert made.where.made
    repo = hub.repo("datasets", NAME)
    assert len(repo.commits) == 4
    assert repo.private
    for name in ("r1", "r2", "r3"):
        assert load(hub, tmp_path, name, name) == {"corrective": expected(project, name)}
    assert load(hub, tmp_path, "r3", "r3", streaming=True) == {"corrective": expected(project, "r3")}
    seeds = load(hub, tmp_path, "r0", "r2")
    assert {one for split in seeds.values() for one in split} == set(expected(project, "r0"))
    everything = load(hub, tmp_path, "all")
    assert everything["corrective"] == expected(project, "r1") | expected(project, "r2") | expected(project, "r3")
    # What a tag names stays what it was.
    assert not any(path.startswith("data/r2") for path in repo.files("r1"))
    for earlier, later in (("r1", "r2"), ("r2", "r3")):
        before, after = repo.files(earlier), repo.files(later)
        assert {p for p in before if before[p] != after.get(p)} <= {
            "README.md",
            FILE,
            "croissant.json",
            "assets/drift.png",
        }


PLAY = """
import io, sys
import av
import numpy as np
from datasets import Video, load_dataset

rows = load_dataset(sys.argv[1], "r1", split="corrective", revision="r1").cast_column("video", Video(decode=False))
with av.open(io.BytesIO(rows[0]["video"]["bytes"])) as file:
    np.save(sys.argv[2], np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]))
"""


def test_decoded_frames_are_those_of_the_store(hub, project, tmp_path):
    """By another library's codecs."""
    to_hub(ask(project, "r1"))
    fresh(hub, tmp_path, PLAY, NAME, str(tmp_path / "frames.npy"))
    row = Store(project.store).read("clips_r1", ids=["clip-r1-0"]).to_pylist()[0]
    mine, theirs = decode_video(row["video"]), np.load(tmp_path / "frames.npy")
    assert theirs.shape == mine.shape
    assert np.abs(theirs.astype(int) - mine).mean() < 4 < np.abs(theirs.astype(int) - mine[::-1]).mean()


def test_a_folder_loads_without_the_hub_and_grows_as_a_repository_does(hub, project, tmp_path):
    out = tmp_path / "out"
    to_folder(ask(project, "r1", None), out)
    to_folder(ask(project, "r2", None), out)
    assert to_folder(ask(project, "r2", None), out).new == []
    assert load(hub, tmp_path, "r2", repo=str(out)) == {"corrective": expected(project, "r2")}
    assert set(load(hub, tmp_path, "all", repo=str(out))["corrective"]) == set(expected(project, "r1")) | set(
        expected(project, "r2")
    )
    to_hub(ask(project, "r1"))
    to_hub(ask(project, "r2"))
    ours = {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    theirs = hub.repo("datasets", NAME).files()
    named = ("README.md", "croissant.json")  # which tell the repository
    assert set(ours) == set(theirs) - {".gitattributes"}
    assert {p for p in ours if ours[p] != theirs[p]} <= set(named)


def test_a_dry_run_says_what_is_new_and_changes_nothing(hub, project):
    first = plan(ask(project, "r1"))
    assert first.new == sorted(first.files)
    with pytest.raises(KeyError):
        hub.repo("datasets", NAME)
    to_hub(ask(project, "r1"))
    assert plan(ask(project, "r1")).new == []
    second = plan(ask(project, "r2"))
    assert {path.split("/")[1] for path in second.new if "/" in path} == {"r2", "drift.png"}
    assert len(hub.repo("datasets", NAME).commits) == 2


# ---------------------------------------------------------------- again, changed, failed, at once


def test_publishing_again_does_nothing(hub, project):
    first = to_hub(ask(project, "r1"))
    again = to_hub(ask(project, "r1"))
    assert (again.where.made, again.where.commit) == (False, first.where.commit)
    assert len(hub.repo("datasets", NAME).commits) == 2


def test_other_run_records_are_no_other_round(hub, project, monkeypatch):
    to_hub(ask(project, "r1"))
    monkeypatch.setattr("store.shards.runs_of", lambda store, name: RUNS.empty_table())
    assert not to_hub(ask(project, "r1")).where.made


def test_a_changed_round_is_a_new_commit_and_the_tag_stays(hub, project):
    first = to_hub(ask(project, "r1"))
    changed = to_hub(ask(project, "r1", where="drift > 0.7"))
    assert changed.where.made
    assert changed.where.tag == first.where.commit == hub.repo("datasets", NAME).tags["r1"]
    moved = to_hub(ask(project, "r1", where="drift > 0.7", retag=True))
    assert not moved.where.made
    assert hub.repo("datasets", NAME).tags["r1"] == changed.where.commit


def test_an_edited_card_keeps_its_words(hub, project):
    to_hub(ask(project, "r1"))
    repo = hub.repo("datasets", NAME)
    card = repo.files()["README.md"].decode().replace("\n# ", "\nOurs, with care.\n\n# ", 1)
    hub.commit_as("ada", repo, {"README.md": card.encode()})
    assert to_hub(ask(project, "r2")).edited
    after = repo.files()["README.md"].decode()
    assert "Ours, with care." in after
    assert "data/r2/corrective-00000-of-00001.parquet" in after


def requests_of_a_publish(hub, project) -> int:
    before = len(hub.requests)
    to_hub(ask(project, "r1"))
    return len(hub.requests) - before


def test_failed_at_any_request_the_same_command_finishes_it(hub, project, monkeypatch):
    """Every request of a publication fails once, for good until it is done again: refused, unheard, or unanswered."""
    monkeypatch.setattr(publishing, "histogram", lambda _: b"a picture")  # drawn, it takes longer than the rest
    total = requests_of_a_publish(hub, project)
    want = dict(hub.repo("datasets", NAME).files("r1"))
    told = []
    for number in range(1, total + 1):
        how, name = ("500", "drop_after", "drop")[number % 3], f"lab/again-{number}"
        hub.heal()
        hub.fail(at=number, how=how, times=60)
        with contextlib.suppress(HubError):
            to_hub(ask(project, "r1", name))
            told.append(number)
        hub.heal()
        to_hub(ask(project, "r1", name))
        repo = hub.repo("datasets", name)
        assert len(repo.commits) == 2, (number, how)
        assert repo.tags == {"r1": repo.head}
        found = repo.files("r1")
        assert set(found) == set(want)
        assert {p for p in found if found[p] != want[p]} <= {"README.md", "croissant.json"}
    assert len(told) < total / 2  # the client makes up for some by trying again


def test_killed_at_any_request_the_same_command_finishes_it(hub, project, tmp_path, monkeypatch):
    env = os.environ | hub.environment | {"HF_TOKEN": "hf_ada", "HF_HOME": str(tmp_path / "home"),
                                          "PYTHONPATH": str(Path(publishing.__file__).parents[1])}  # fmt: skip
    monkeypatch.setattr(publishing, "histogram", lambda _: b"a picture")
    total = requests_of_a_publish(hub, project)
    command = [sys.executable, "-c", PUBLISHER, str(project.store)]
    with subprocess.Popen(
        command, cwd=project.root, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as publisher:
        for number in itertools.count(1):
            name, pids = f"lab/again-{number}", queue.Queue()
            hub.heal()
            hub.call_at(number, lambda pids=pids: os.kill(pids.get(timeout=60), signal.SIGKILL))
            publisher.stdin.write(f"{name}\n")
            publisher.stdin.flush()
            pids.put(int(publisher.stdout.readline()))
            status = int(publisher.stdout.readline())
            if status == 0:  # it was done before so many
                break
            assert status == -signal.SIGKILL, number
            to_hub(ask(project, "r1", name))
            repo = hub.repo("datasets", name)
            assert len(repo.commits) == 2, number
            assert repo.tags == {"r1": repo.head}
    assert number >= total


def test_two_publish_at_once(hub, project):
    """The other's round comes between our look and our commit."""
    to_hub(ask(project, "r1"))
    hub.call_before(lambda method, path: "/commit/" in path, lambda: to_hub(ask(project, "r3")))
    made = to_hub(ask(project, "r2"))
    repo = hub.repo("datasets", NAME)
    assert made.where.made
    assert sorted(repo.tags) == ["r1", "r2", "r3"]
    assert set(json.loads(repo.files()[FILE])["rounds"]) == {"r1", "r2", "r3"}
    assert set(json.loads(repo.files("r3")[FILE])["rounds"]) == {"r1", "r3"}


def test_a_strangers_change_in_between_is_kept(hub, project):
    to_hub(ask(project, "r1"))
    repo = hub.repo("datasets", NAME)
    hub.call_before(lambda method, path: "/commit/" in path, lambda: hub.commit_as("ada", repo, {"notes.md": b"mine"}))
    to_hub(ask(project, "r2"))
    assert repo.files("r2")["notes.md"] == b"mine"


def test_what_was_changed_on_the_way_is_noticed(hub, project, monkeypatch):
    def tampered(self, path, commit, folder):
        file = original(self, path, commit, folder)
        if path.endswith(".parquet"):
            file.write_bytes(file.read_bytes()[:-1] + b"x")
        return file

    original = publishing.Repo.download
    monkeypatch.setattr(publishing.Repo, "download", tampered)
    with pytest.raises(HubError, match="read back is not what was sent"):
        to_hub(ask(project, "r1"))
    assert publications(project.store) == []


def test_as_a_flow(hub, project, tmp_path, prefect_home):
    shutil.copytree(prefect_home, project.root / HOME)
    env = os.environ | hub.environment | {"HF_TOKEN": "hf_ada", "HF_HOME": str(tmp_path / "home"),
                                          "PYTHONPATH": str(Path(publishing.__file__).parents[1])}  # fmt: skip
    command = [sys.executable, "-m", "flows.publish", "--round", "r1", "--repo", NAME]
    done = subprocess.run(command, cwd=project.root, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert f"publish-r1: {NAME} at {hub.repo('datasets', NAME).tags['r1'][:12]}" in done.stderr


# ---------------------------------------------------------------- what may not be published


def test_licences_decide(hub, project, monkeypatch):
    def under(license):
        def rows(store, entries):
            import pyarrow as pa

            return pa.array([license] * entries.num_rows, pa.string())

        monkeypatch.setattr("store.licence.licences_of", rows)

    def refused(said, **more):
        with pytest.raises(StoreError, match=said):
            plan(Request("r1", NAME, store=project.store, **more))

    under(None)
    plan(Request("r1", NAME, store=project.store))
    refused("r0: 4 seed clips have no licence.*--allow-license none", include_seed=True)
    plan(Request("r1", NAME, store=project.store, include_seed=True, allowed=("none",)))
    under("CC-BY-ND-4.0")
    refused("r1: 2 clips that hold frames of seed clips have licence 'CC-BY-ND-4.0', which forbids")
    plan(Request("r1", NAME, store=project.store, allowed=("CC-BY-ND-4.0",)))
    under("Our own terms")
    plan(Request("r1", NAME, store=project.store))
    refused('--allow-license "Our own terms"', include_seed=True)
    under("CC0-1.0")
    plan(Request("r1", NAME, store=project.store, include_seed=True))


def test_a_repository_of_something_else_is_left_alone(hub, project):
    to_hub(ask(project, "r1", "lab/other"))
    repo = hub.repo("datasets", "lab/other")
    hub.commit_as("ada", repo, {FILE: None})
    with pytest.raises(HubError, match=r"holds other files .* and no publication\.json"):
        to_hub(ask(project, "r2", "lab/other"))
    hub.commit_as("ada", repo, {FILE: b'{"format": "other"}'})
    with pytest.raises(StoreError, match=r"publication\.json cannot be read"):
        to_hub(ask(project, "r2", "lab/other"))


def test_a_folder_of_something_else_is_left_alone(project, tmp_path):
    (tmp_path / "a.txt").write_text("mine")
    with pytest.raises(StoreError, match="is no empty folder, and holds no publication"):
        to_folder(ask(project, "r1", None), tmp_path)


# ---------------------------------------------------------------- recorded, and fetched


def test_it_is_recorded_and_shows_in_lineage(hub, project):
    made = to_hub(ask(project, "r1"))
    (fact,) = publications(project.store)
    assert (fact["repo"], fact["tag"], fact["revision"]) == (NAME, "r1", made.where.commit)
    assert fact["tables"]["clips_r1"] == read_manifest(project.root / "data/manifests/clips_r1.json").digest
    assert "hf_ada" not in (project.root / "data/publications.jsonl").read_text()
    shown = f"dataset {NAME}@r1 ({made.where.commit[:12]})"
    assert Store(project.store).lineage("clip-r1-0")["published"] == [shown]
    assert Store(project.store).lineage("r1")["published"] == [shown]
    assert "published" not in Store(project.store).lineage("clip-r2-0")


def test_fetched_it_is_the_same_store(hub, project, tmp_path, monkeypatch):
    for name in ("r1", "r2"):
        to_hub(ask(project, name, include_seed=True))
    there = tmp_path / "there"
    there.mkdir()
    monkeypatch.chdir(there)
    store = there / "data" / "store"
    found = fetch(NAME, "r2", store=store)
    assert found.rounds == {"r0": 4, "r1": 2, "r2": 2}
    for path in (project.root / "data" / "manifests").glob("*.json"):
        if not path.stem.endswith("_r3"):
            assert (there / "data" / "manifests" / path.name).read_bytes() == path.read_bytes()
    mine, theirs = Store(project.store), Store(store)
    for any_id in ("clip-r2-0", "rollout-r1-1", "seed-1", project.whole.models["r1"], "run-train-r1"):
        assert without_host(theirs.lineage(any_id)) == without_host(mine.lineage(any_id))
    assert theirs.clips(round="r2").equals(mine.clips(round="r2"))
    assert theirs.clips(at="r1", kind="all").num_rows == 6
    assert {path.name for path in (there / "data" / "plans").iterdir()} == {
        f"{name}.{ending}" for name in ("r0", "r1", "r2") for ending in ("parquet", "json")
    }
    assert fetch(NAME, "r2", store=store).tables == []
    assert not (there / ".work" / "fetch" / "lab--clips").exists()


def without_host(node: dict) -> dict:
    """A tree without what does not travel: machines, flow runs, a later round, and where it is published."""
    kept = {key: value for key, value in node.items() if key not in ("host", "flow_run_id", "published")}
    parents = [without_host(one) for one in node["parents"] if one["id"] != "run-rewrite-r3"]
    return kept | {"parents": parents}


def test_without_seed_clips_there_is_an_empty_table_of_them(hub, project, tmp_path, monkeypatch):
    to_hub(ask(project, "r1"))
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    fetch(NAME, "r1", store=Path("data/store"))
    store = Store("data/store")
    assert store.read("seed").num_rows == 0
    assert store.clips(round="r1").num_rows == 2
    seed = [one for one in store.lineage("clip-r1-0")["parents"][0]["parents"] if one["type"] == "seed"]
    assert seed[0]["note"] == "the store has no record of it"


def test_fetching_what_is_not_there(hub, project, here):
    to_hub(ask(project, "r1"))
    for repo, revision, rounds, said in (
        ("lab/none", "main", (), "no dataset lab/none"),
        (NAME, "r9", (), "no revision 'r9'; its tags: r1"),
        (NAME, "r1", ("r2",), "holds no round r2; it holds r1"),
    ):
        with pytest.raises(StoreError, match=said):
            fetch(repo, revision, rounds, Path("elsewhere/store"))
    hub.commit_as("ada", hub.repo("datasets", NAME), {FILE: None})
    with pytest.raises(FetchError, match=r"holds no publication\.json"):
        fetch(NAME, "main", store=Path("elsewhere/store"))


def test_a_fetch_replaces_nothing(hub, project, tmp_path, monkeypatch):
    to_hub(ask(project, "r1", where="drift > 0.7"))
    digest = hashlib.sha256((project.root / "data/manifests/clips_r1.json").read_bytes()).hexdigest()
    with pytest.raises(StoreError, match="holds another clips_r1"):
        fetch(NAME, "r1", store=project.store)
    assert hashlib.sha256((project.root / "data/manifests/clips_r1.json").read_bytes()).hexdigest() == digest


@pytest.mark.parametrize("how", ["500", "drop"])
def test_a_fetch_that_fails_is_finished_by_the_same_call(hub, project, tmp_path, monkeypatch, how):
    to_hub(ask(project, "r1"))
    for number in range(1, 14, 3):
        (tmp_path / f"there-{number}").mkdir()
        monkeypatch.chdir(tmp_path / f"there-{number}")
        hub.fail(at=number, how=how, times=30)
        with pytest.raises(HubError):
            fetch(NAME, "r1", store=Path("data/store"))
        hub.heal()
        fetch(NAME, "r1", store=Path("data/store"))
        assert Store("data/store").clips(round="r1").num_rows == 2

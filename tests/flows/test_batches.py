"""Batches as tasks of a real Prefect server: order, retries, failures, artifacts."""

import io
import json
import shutil
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
from PIL import Image

from flows.batches import per_thread, publish_sheet, publish_table, run_batches
from flows.progress import progress_bar
from flows.server import HOME, prefect_server
from flows.stage import StageError


@pytest.fixture(scope="module")
def server(tmp_path_factory, prefect_home):
    """One server for all tests here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("server"))
        shutil.copytree(prefect_home, HOME)
        patch.delenv("PREFECT_API_URL", raising=False)
        with prefect_server() as url:
            yield url


def post(url: str, path: str) -> list[dict]:
    request = urllib.request.Request(f"{url}/{path}", data=b"{}", headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def test_results_in_order_and_workers_at_once(server, capsys):
    together = threading.Barrier(3, timeout=20)  # passed only by three batches at a time

    def work(batch):
        together.wait()
        time.sleep(0.01 * (6 - batch[0]))
        return batch[0] * 10

    run = run_batches("demo-r1", [[k, k] for k in range(6)], work, workers=3)
    assert run.results == [0, 10, 20, 30, 40, 50]
    ours = [one for one in post(server, "flow_runs/filter") if one["id"] == run.flow_run_id]
    assert [one["name"] for one in ours] == ["demo-r1"]
    assert "demo-r1: 12/12 clip" in capsys.readouterr().err  # items, not batches


def test_nothing_missing_still_reports(server):
    seen = []
    assert run_batches("demo", [], lambda _: None, workers=1, report=lambda: seen.append(1)).results == []
    assert seen == [1]


def test_failed_batch_is_tried_again(server, capsys, monkeypatch):
    monkeypatch.setattr("flows.batches.RETRY_SECONDS", 0.1)
    tries = []

    def work(batch):
        tries.append(batch)
        if batch == "b" and tries.count("b") < 3:
            raise OSError("disk is busy")
        return batch

    run = run_batches("demo", ["a", "b"], work, workers=1, describe=lambda batch: f"clip {batch}")
    assert run.results == ["a", "b"]
    assert tries.count("b") == 3
    err = capsys.readouterr().err
    assert "demo: batch 2 of 2 (clip b) failed, try 1 of 3: OSError: disk is busy" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(("error", "tried"), [(OSError("disk is gone"), 3), (StageError("clip-7: no prompt"), 1)])
def test_reason_of_a_failure_reaches_the_caller(server, monkeypatch, error, tried):
    monkeypatch.setattr("flows.batches.RETRY_SECONDS", 0.1)
    seen = []

    def work(batch):
        seen.append(batch)
        if batch == 1:
            raise type(error)(*error.args)
        time.sleep(0.2)

    with pytest.raises(type(error), match=str(error)) as caught:
        run_batches("demo", range(40), work, workers=2)
    assert seen.count(1) == tried
    assert len(seen) < 40  # the rest does not start
    assert caught.traceback[-1].name == "work"
    assert not [entry for entry in caught.traceback if entry.name == "call_with_parameters"]


def test_artifacts_belong_to_the_run(server):
    noise = np.random.default_rng(0).integers(0, 255, (400, 400, 3), dtype=np.uint8)
    png = io.BytesIO()
    Image.fromarray(noise).save(png, "PNG")
    assert len(png.getvalue()) > 200_000

    def report():
        publish_sheet("Rollout_r1 sheet", png.getvalue(), "first clips")
        publish_table("scores_r1", [{"clip": "clip-1", "drift": np.float32(1.23456), "oracle": float("nan")}])

    run = run_batches("demo", [], lambda _: None, workers=1, report=report)
    ours = {one["key"]: one for one in post(server, "artifacts/filter") if one["flow_run_id"] == run.flow_run_id}
    assert set(ours) == {"rollout-r1-sheet", "scores-r1"}
    assert ours["rollout-r1-sheet"]["data"].startswith("data:image/jpeg;base64,")
    assert len(ours["rollout-r1-sheet"]["data"]) < 280_000
    assert json.loads(ours["scores-r1"]["data"]) == [{"clip": "clip-1", "drift": 1.235, "oracle": None}]


def test_bar_in_a_log_file_is_a_few_lines(capsys):
    with progress_bar(1000, "train-r1", "step", done=400) as bar:
        for _ in range(600):
            bar.update(1)
    lines = capsys.readouterr().err.splitlines()
    assert 1 <= len(lines) <= 3
    assert lines[0].startswith("train-r1: 400/1000 step")
    assert lines[-1].startswith("train-r1: 1000/1000 step")


def test_each_thread_has_its_own():
    made = []

    def make() -> object:
        made.append(object())
        return made[-1]

    get = per_thread(make)
    assert get() is get()
    with ThreadPoolExecutor(2) as pool:
        barrier = Barrier(2)

        def two_at_once(_: int) -> tuple[object, object]:
            first = get()
            barrier.wait(10)
            return first, get()

        pairs = list(pool.map(two_at_once, range(2)))
    assert all(first is second for first, second in pairs)
    assert len({id(one) for one in made}) == len(made) == 3

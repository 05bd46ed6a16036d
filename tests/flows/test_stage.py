"""A stage's run: its ids, its work folder, its record, its lock, and its death with dvc."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from flows.params import load_params
from flows.process import BusyError, acquire_lock
from flows.stage import Stage, StageError, path_digest, write_json

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Seconds:
    seconds: float


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """An empty project folder as the current one, not under dvc."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    return tmp_path


def write(project: Path, body: str) -> None:
    """Writes a stage module with the given body of `main(params, round)`."""
    lines = ["import time, sys, os", "from pathlib import Path", "from flows.command import command"]
    lines += ["from flows.stage import Stage", "def main(params, round):"]
    lines += ["    " + line for line in body.splitlines()]
    lines += ['if __name__ == "__main__":', "    command(main)"]
    (project / "demo.py").write_text("\n".join(lines))


def start(project: Path, body: str, *arguments: str, **more) -> subprocess.Popen:
    """Starts such a module."""
    write(project, body)
    return subprocess.Popen(
        [sys.executable, "demo.py", "--round", "r1", *arguments],
        cwd=project,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


def wait_for(condition, seconds: float = 20.0):
    """Polls until the condition holds, and returns what it gave."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.05)
    return value


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_run_id_depends_on_params_and_inputs_alone():
    first = Stage("rollout", "r1", params={"steps": 8}, inputs={"seed": "a"})
    assert first.run_id == Stage("rollout", "r1", params={"steps": 8}, inputs={"seed": "a"}).run_id
    assert first.work == Stage("rollout", "r1", params={"steps": 8}, inputs={"seed": "a"}).work
    others = [
        Stage("rollout", "r2", params={"steps": 8}, inputs={"seed": "a"}),
        Stage("score", "r1", params={"steps": 8}, inputs={"seed": "a"}),
        Stage("rollout", "r1", params={"steps": 9}, inputs={"seed": "a"}),
        Stage("rollout", "r1", params={"steps": 8}, inputs={"seed": "b"}),
    ]
    assert len({first.run_id, *(stage.run_id for stage in others)}) == 5
    assert len({first.work, *(stage.work for stage in others)}) == 5


def test_params_may_be_sections_and_dataclasses():
    video = load_params().video
    plain = Stage("seed", params={"video": video.model_dump(), "seconds": {"seconds": 1.5}})
    assert Stage("seed", params={"video": video, "seconds": Seconds(1.5)}).run_id == plain.run_id


def test_other_code_continues_no_work_but_keeps_the_id(monkeypatch):
    before = Stage("rollout", "r1")
    monkeypatch.setattr("flows.stage._loaded_code", lambda: {"flows/rollout.py": "edited"})
    after = Stage("rollout", "r1")
    assert before.run_id == after.run_id
    assert before.work != after.work


def test_success_leaves_a_record_and_no_work():
    stale = Path(".work/rollout-r1-0123456789abcdef")
    other = Path(".work/rollout-r10-0123456789abcdef")
    stale.mkdir(parents=True)
    other.mkdir()
    with Stage("rollout", "r1", params={"steps": 8}, inputs={"seed": "a"}) as stage:
        (stage.work / "part").write_text("half")
        stage.outputs["rows"] = 3
    record = json.loads(Path("data/runs/rollout_r1.json").read_text())
    assert record["run_id"] == stage.run_id
    assert (record["params"], record["inputs"], record["outputs"]) == ({"steps": 8}, {"seed": "a"}, {"rows": 3})
    assert record["packages"]["torch"].startswith("2.")
    assert record["seconds"] >= 0
    assert record["git_commit"] is None
    assert not stage.work.exists()
    assert not stale.exists()
    assert other.exists()


def test_failure_keeps_work_and_writes_no_record(capsys):
    def attempt() -> str:
        with Stage("seed") as stage:
            seen = (stage.work / "part").exists()
            (stage.work / "part").write_text("half")
            raise RuntimeError(f"power cut, part seen: {seen}")

    for seen in (False, True):
        with pytest.raises(RuntimeError, match=f"part seen: {seen}"):
            attempt()
    assert not Path("data/runs/seed.json").exists()
    assert "seed: continues what an interrupted run left" in capsys.readouterr().err


def test_the_work_folder_says_whose_it_is(capsys):
    def attempt(stage: Stage) -> None:
        with stage:
            raise RuntimeError

    began = None
    for _ in range(2):
        stage = Stage("rollout", "r1", params={"steps": 8})
        with pytest.raises(RuntimeError):
            attempt(stage)
        told = json.loads((stage.work / "run.json").read_text())
        began = began or told["begun_at"]
        assert (told["stage"], told["round"], told["run_id"]) == ("rollout", "r1", stage.run_id)
        assert (told["pid"], told["begun_at"]) == (os.getpid(), began)
    assert "continues" not in capsys.readouterr().err  # nothing but that file was there
    (stage.work / "run.json").write_text("[half")
    with Stage("rollout", "r1", params={"steps": 8}) as stage:
        assert json.loads((stage.work / "run.json").read_text())["begun_at"] >= began
    assert not stage.work.exists()


def test_two_never_run_at_once(project):
    body = 'with Stage("demo", round) as stage:\n    Path("started").touch()\n    time.sleep(1.5)'
    first = start(project, body)
    wait_for(Path("started").exists)
    began = time.monotonic()
    with Stage("demo", "r1"):
        assert time.monotonic() - began > 0.5
        assert first.wait(5) == 0
        with pytest.raises(BusyError, match=f"still runs as process {os.getpid()}"):
            acquire_lock(Path(".work/demo-r1.lock"), "demo-r1", patience=0.3)
        with Stage("demo", "r2"):  # another round is other work
            pass


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux")
@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_stage_dies_with_dvc(project, shell, sent):
    write(project, 'with Stage("demo", round):\n    Path("pid").write_text(str(os.getpid()))\n    time.sleep(60)')
    (project / "dvc.yaml").write_text(f"stages:\n  demo:\n    cmd: {sys.executable} demo.py --round r1\n")
    dvc = [sys.executable, "-m", "dvc"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "SHELL": shell}
    subprocess.run([*dvc, "init", "--no-scm", "-q"], check=True, env=env)
    repro = subprocess.Popen([*dvc, "repro", "-q"], env=env)
    pid = int(wait_for(lambda: Path("pid").exists() and Path("pid").read_text()))
    assert alive(pid)
    repro.send_signal(sent)
    repro.wait(10)
    wait_for(lambda: not alive(pid), seconds=5)


def test_stage_whose_dvc_has_gone_does_not_start(project, monkeypatch):
    body = 'Stage("demo", round).__enter__()\nPath("ran").touch()'
    late = start(project, body, start_new_session=True)  # an orphan: its parent is in another session
    late.communicate()
    assert Path("ran").exists()  # not under dvc
    Path("ran").unlink()
    monkeypatch.setenv("DVC_STAGE", "demo")
    late = start(project, body, start_new_session=True)
    assert "error: demo-r1: dvc, which started this, is gone" in late.communicate()[1]
    assert late.returncode == 1
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("body", "status", "first", "traced"),
    [
        ('from store.table import StoreError\nraise StoreError("no rollouts_r1")', 1, "error: no rollouts_r1", False),
        ("params.round('r9')", 1, "error: params.yaml: rounds has no 'r9'", False),
        ('raise ValueError("a defect")', 1, "Traceback", True),
        ("raise KeyboardInterrupt", 130, "interrupted; the same command continues the work", False),
    ],
)
def test_how_a_command_ends(project, body, status, first, traced):
    process = start(project, body)
    out, err = process.communicate()
    assert (process.returncode, out) == (status, "")
    assert err.startswith(first)
    assert ("Traceback" in err) == traced
    assert traced or len(err.splitlines()) == 1


def test_ctrl_c_is_never_success(project):
    # Tests that run in the background of a shell ignore Ctrl-C, and children inherit that: here it shall count.
    heard = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    process = start(project, heard + 'with Stage("demo", round):\n    Path("started").touch()\n    time.sleep(60)')
    wait_for(Path("started").exists)
    process.send_signal(signal.SIGINT)
    assert process.wait(5) == 130
    assert not Path("data").exists()


def test_traceback_on_request(project):
    process = start(project, "params.round('r9')", "--traceback")
    err = process.communicate()[1]
    assert "demo.py" in err
    assert err.splitlines()[-1].startswith("error: ")


def test_path_digest_is_of_names_and_bytes(tmp_path):
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a").write_text("1")
    first = path_digest(folder)
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "x.pyc").write_text("noise")
    assert path_digest(folder) == first
    (folder / "sub" / "a").rename(folder / "sub" / "b")
    assert path_digest(folder) != first
    with pytest.raises(StageError, match="dvc repro"):
        path_digest(tmp_path / "nothing")


def test_write_json_replaces_whole_files(tmp_path):
    path = tmp_path / "deep" / "file.json"
    write_json(path, {"b": 1, "a": "é"})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": "é", "b": 1}
    assert [file.name for file in path.parent.iterdir()] == ["file.json"]

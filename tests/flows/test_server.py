"""The private server: it is used, and it outlives nobody. One real start, under a real `dvc repro`."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.server import HOME, ServerError, prefect_server

ROOT = Path(__file__).parents[2]

STAGE = """
import os, time
from pathlib import Path
from flows.batches import run_batches
from flows.command import command
from flows.stage import Stage

def work(number):
    Path("pid.part").write_text(f"{os.getpid()}")
    os.replace("pid.part", "pid")  # whoever sees the file may read it
    time.sleep(60 if Path("hang").exists() else 0)
    return os.environ["PREFECT_API_URL"]

def main(params):
    with Stage("demo") as stage:
        stage.flow_run_id = run_batches("demo", [1], work, workers=1).flow_run_id
        Path("out").write_text("made")

if __name__ == "__main__":
    command(main)
"""


@pytest.fixture
def project(tmp_path, monkeypatch, prefect_home):
    """A DVC project of one stage that fans out, as the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(prefect_home, HOME)
    Path("demo.py").write_text(STAGE)
    Path("dvc.yaml").write_text("stages:\n  demo:\n    cmd: python demo.py\n    deps: [demo.py]\n    outs: [out]\n")
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], check=True)
    return tmp_path


def processes() -> dict[int, tuple[int, str]]:
    """Parent and command line of every living process."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state != "Z":
            found[int(entry.name)] = (int(parent), words)
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_one_server_for_a_run_and_no_orphan(project):
    repro = [sys.executable, "-m", "flows.repro"]
    Path("hang").touch()
    running = subprocess.Popen(repro)
    deadline = time.monotonic() + 60
    while not Path("pid").exists():
        assert time.monotonic() < deadline
        assert running.poll() is None
        time.sleep(0.1)
    stage = int(Path("pid").read_text())
    servers = [pid for pid, (parent, words) in processes().items() if parent == running.pid and "flows.server" in words]
    assert len(servers) == 1  # of the run; the stage has none of its own
    assert not [pid for pid, (parent, words) in processes().items() if parent == stage and "flows.server" in words]
    running.send_signal(signal.SIGKILL)
    running.wait()
    deadline = time.monotonic() + 5
    while {stage, servers[0]} & set(processes()):
        assert time.monotonic() < deadline, "an orphan stays"
        time.sleep(0.1)

    Path("hang").unlink()  # the same command again ends the work; a stage by itself starts a server of its own
    again = subprocess.run([sys.executable, "-m", "dvc", "repro"], env=os.environ | {"PATH": path()})
    assert again.returncode == 0
    assert Path("out").read_text() == "made"
    assert not [words for _, words in processes().values() if "flows.server" in words and str(project) in words]

    began = time.monotonic()
    third = subprocess.run(repro, capture_output=True, text=True)
    assert third.returncode == 0
    assert third.stderr.startswith("nothing to do")
    assert time.monotonic() - began < 30


def path() -> str:
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


def test_server_of_the_user_is_used_or_missed(monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    with pytest.raises(ServerError, match="nothing answers at http://127.0.0.1:9/api"), prefect_server():
        pass

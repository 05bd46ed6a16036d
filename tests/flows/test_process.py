"""Asking the stages that run under this process to end."""

import subprocess
import sys
import time

import pytest

from flows.process import terminate_stages

CODE = """import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
print("ready", flush=True)
time.sleep(60)
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are looked for in /proc")


def started(name: str, shell: str) -> subprocess.Popen:
    """A Python that calls itself `name`, below a shell that stays between."""
    command = f'{sys.executable} -c "$CODE" {name}; status=$?; {shell}; exit $status'
    child = subprocess.Popen(["sh", "-c", command], env={"CODE": CODE}, stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    return child


def test_the_stage_ends_and_not_the_shell_or_the_server():
    assert not terminate_stages()
    stage, server = started("flows.train", "true"), started("flows.server", "true")
    try:
        assert terminate_stages()
        assert stage.wait(20) == 7  # by its own handler; the shell lived to tell
        time.sleep(0.2)
        assert server.poll() is None
        assert not terminate_stages()
    finally:
        subprocess.run(["pkill", "-P", str(server.pid)], check=False)
        server.wait(20)

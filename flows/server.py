"""A private Prefect server that lives exactly as long as the process that needs it.

Prefect's own temporary server outlives a killed flow (230 MB each) and dies before it on Ctrl-C. This one runs in a
session of its own, so that Ctrl-C does not reach it, and asks the kernel to be killed with its parent. Its database is
kept in `.prefect/` of the project, and `PREFECT_HOME=$PWD/.prefect prefect server start` shows past runs. Nothing is
resumed from it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from flows.process import die_with_parent

HOME = Path(".prefect")
START_SECONDS = 120.0
SEND_SECONDS = 30.0
DRAIN_SECONDS = 2.0  # Prefect records task runs from a queue: stopped at once, the server would lose the last ones


class ServerError(ValueError):
    """There is no Prefect server to run flows with."""


@contextlib.contextmanager
def prefect_server() -> Iterator[str]:
    """A Prefect server for this process and its children, as the environment variable PREFECT_API_URL.

    Where that variable is set already (a server of yours, or the one that `make repro` keeps), that server is used.
    Enter it in a thread that lives as long as the server shall: the main thread.

    Yields:
        The URL of the server's API.

    Raises:
        ServerError: the server of PREFECT_API_URL does not answer, or a private one does not start.
    """
    url = os.environ.get("PREFECT_API_URL")
    if url:
        if not _answers(url):
            raise ServerError(f"PREFECT_API_URL: nothing answers at {url}; start that server, or unset the variable")
        yield url
        return
    home = HOME.resolve()
    home.mkdir(parents=True, exist_ok=True)
    with _environment(_quiet() | {"PREFECT_HOME": str(home)}):
        server, url = _start(home / "server.log")
        try:
            with _environment({"PREFECT_API_URL": url}):
                yield url
                _send_the_rest()
                time.sleep(DRAIN_SECONDS)
        finally:
            server.terminate()
            try:
                server.wait(3)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _send_the_rest() -> None:
    """Hands over what Prefect's client still has queued: with no server it would go on trying when Python ends."""
    if "prefect.events.worker" in sys.modules:
        from prefect.events.worker import EventsWorker
        from prefect.logging.handlers import APILogWorker

        for worker in (EventsWorker, APILogWorker):
            worker.drain_all(timeout=SEND_SECONDS, at_exit=False)


def _quiet() -> dict[str, str]:
    """Nothing is reported to anybody, and only our own lines are printed; what the user has set stays."""
    wanted = {
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_LEVEL": "CRITICAL",
        "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
    }
    return {key: value for key, value in wanted.items() if key not in os.environ}


def _start(log: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Starts a server on a free port and waits until it answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener, log.open("wb") as output:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
        server = subprocess.Popen(
            [sys.executable, "-m", "flows.server", str(listener.fileno()), str(os.getpid())],
            cwd=Path(__file__).resolve().parent.parent,
            pass_fds=[listener.fileno()],
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    deadline = time.monotonic() + START_SECONDS
    while not _answers(f"{url}/health", seconds=1):
        if server.poll() is not None or time.monotonic() > deadline:
            server.kill()
            last = log.read_text(errors="replace").strip().splitlines()[-1:] or ["no message"]
            raise ServerError(f"the private Prefect server did not start: {last[0]} (see {log})")
        time.sleep(0.1)
    return server, url


def _answers(url: str, seconds: float = 10.0) -> bool:
    """Whether something speaks HTTP there."""
    try:
        with urllib.request.urlopen(url, timeout=seconds):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500
    except (OSError, ValueError):
        return False


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Environment variables for a while."""
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def _serve(file_descriptor: int, parent: int) -> None:
    """The server process: dies with its parent, serves on the socket it inherited."""
    die_with_parent(parent)
    import uvicorn
    from prefect.server.api.server import create_app

    app = create_app(ephemeral=True, final=True)
    listener = socket.socket(fileno=file_descriptor)
    uvicorn.Server(uvicorn.Config(app, log_level="critical", access_log=False)).run(sockets=[listener])


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]))

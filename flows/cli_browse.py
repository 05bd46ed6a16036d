"""`bagger browse`: a local page to look at clips.

Notable: the server is a process of its own, which ends with this one whichever way that ends, and at once: it only
reads, so killing it loses nothing, while Streamlit's own end takes seconds.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from flows import paths
from flows.command import say
from flows.console import CommandError, StoreUri, command_group, open_store

ADDRESS = "127.0.0.1"
PORT = 8501
PAGE = Path(__file__).with_name("page.py")
# The command `streamlit`, as a process that is killed when the one whose id it is given ends. It has these very rooms,
# whatever folder it is started in: a project may be a checkout with another `store`.
STREAMLIT = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from flows.process import die_with_parent
die_with_parent(int(sys.argv.pop(1)))
from streamlit.web.cli import main
main(prog_name="streamlit")
"""
# What Streamlit would else do: count users, ask for an e-mail address, watch files, show its menu of developers' tools.
SETTINGS = {
    "browser.gatherUsageStats": "false",
    "client.showErrorDetails": "stacktrace",
    "client.showErrorLinks": "false",
    "client.toolbarMode": "viewer",
    "global.developmentMode": "false",
    "logger.hideWelcomeMessage": "true",
    "logger.level": "warning",
    "runner.magicEnabled": "false",
    "server.fileWatcherType": "none",
    "server.runOnSave": "false",
    "server.showEmailPrompt": "false",
    "theme.primaryColor": "#2f6fde",
}

app = command_group()


@app.command(
    epilog="""\b
Examples:
  bagger browse                                       the project's store, in your browser
  bagger browse --store s3://team/registry            a registry; there is one more filter, by experiment
  bagger browse --port 9000 --no-open                 on another machine; at home `ssh -L 9000:127.0.0.1:9000 HOST`
  http://127.0.0.1:8501/?clip=clip-0123456789abcdef   the page's address opens a clip, and keeps the filters"""
)
def browse(
    store: StoreUri = str(paths.STORE),
    port: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, max=65535, help=f"Else {PORT}, or the next one that is free."),
    ] = None,
    no_open: Annotated[bool, typer.Option("--no-open", help="Do not open a browser.")] = False,
) -> None:
    """Look at clips on a local page.

    Filter by round and drift, watch them beside their rollouts and seed clips, read where they come from.

    The page shows each corrective clip next to its rollout and its seed clip, the drift of every frame, lineage, the
    rewrite of the prompt and the training that used it. It only reads, is reachable from this machine alone, and runs
    until Ctrl-C.
    """
    if find_spec("streamlit") is None:
        raise CommandError("the page needs Streamlit; get it with `pip install 'bagger[browse]'`")
    open_store(store).open("catalog")  # refuses a store that is missing or damaged
    port = free_port(port)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell has it ignored
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    server = subprocess.Popen(command_line(store, port, no_open))
    try:
        while server.poll() is None and not answers(port):
            time.sleep(0.1)
        if server.poll() is None:
            say(f"{store}: http://{ADDRESS}:{port} (Ctrl-C ends it)")
        status = server.wait()
    finally:
        server.kill()
        server.wait()
    raise CommandError(f"the page's server ended by itself, with status {status}")


def answers(port: int) -> bool:
    """Whether something listens there."""
    with socket.socket() as probe:
        return probe.connect_ex((ADDRESS, port)) == 0


def free_port(asked: int | None) -> int:
    """The port asked for, else the first free one from PORT on. Raises CommandError if there is none."""
    for port in [asked] if asked else range(PORT, PORT + 100):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does; one that listens refuses
            try:
                probe.bind((ADDRESS, port))
                return port
            except OSError as error:
                reason = error.strerror
    raise CommandError(f"--port {port}: {reason}; name another one, or leave --port out to take the next free one")


def command_line(store: str, port: int, no_open: bool) -> list[str]:
    """The server's arguments, which a streamlit.toml of the user's does not override."""
    settings = SETTINGS | {"server.address": ADDRESS, "server.port": str(port), "server.headless": str(no_open).lower()}
    flags = [f"--{name}={value}" for name, value in settings.items()]
    return [
        sys.executable,
        "-P",
        "-c",
        STREAMLIT,
        str(PAGE.parents[1]),
        str(os.getpid()),
        "run",
        str(PAGE),
        *flags,
        "--",
        store,
    ]

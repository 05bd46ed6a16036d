"""`dvc repro` with one private Prefect server for the whole run: `python -m flows.repro [dvc repro arguments]`.

`dvc repro` alone gives the same results; each stage that fans out then starts a server of its own (3 to 6 s). Where
nothing has changed, this says so without starting one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path

from flows.command import RESUMES, clear_errors, say
from flows.params import load_params
from flows.paths import STORE
from flows.process import terminate_stages
from flows.server import prefect_server
from store.table import open_table, table_names

WHERE_TO_LOOK = """
reports/                                   drift by round, drift over time, the same prompts across rounds
bagger clips --sort -drift --limit 5       the corrective clips that drifted most
bagger lineage CLIP_ID                     where one of them comes from"""


def main(arguments: list[str]) -> int:
    """Runs `dvc repro`; its exit status."""
    with clear_errors():
        preflight()
    # The commands in dvc.yaml say `python`: this one, also where no environment is activated.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    if nothing_to_do(arguments):
        say("nothing to do: no code, parameter or data has changed since the last run")
        say(WHERE_TO_LOOK)
        return 0
    from dvc.cli import main as dvc

    signal.signal(signal.SIGTERM, end)
    with clear_errors(interrupted=RESUMES), prefect_server():
        status = int(dvc(["repro", *arguments]))
    if status == 0:
        say(WHERE_TO_LOOK)
    else:
        # DVC deletes a stage's outs before it runs; what the failed one had made before is still in DVC's cache.
        with contextlib.redirect_stdout(None), contextlib.redirect_stderr(None):
            dvc(["checkout", "--quiet", "--allow-missing"])
    return status


def end(*_: object) -> None:
    """On SIGTERM: a training saves what it has when it is asked to end; to die here at once would take it along."""
    if not terminate_stages():
        raise SystemExit(128 + signal.SIGTERM)


def preflight() -> None:
    """What would fail in the middle fails before DVC deletes anything: params.yaml, and tables of a newer schema."""
    load_params()
    for name in table_names(STORE):
        open_table(STORE, name)


def nothing_to_do(targets: list[str]) -> bool:
    """Whether DVC finds every stage (of the targets) up to date. With options it is for DVC to decide."""
    if any(target.startswith("-") for target in targets) or not Path("dvc.lock").exists():
        return False
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            return not repo.status(targets=targets or None)
    except DvcException:
        return False  # `dvc repro` meets it again, and explains it


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

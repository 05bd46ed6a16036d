"""One DVC stage command: how it starts, where it works, how it ends, what it leaves on record.

DVC decides whether a stage runs; a `Stage` makes that one run safe to kill at any moment and to start again:
- it dies with `dvc` (else `dvc` killed would leave it behind, and the next `dvc repro` would start a second one);
- a lock for each stage and round makes a successor wait for a predecessor that is still dying;
- its work in progress lives in `.work/`, outside of DVC's outs (DVC deletes those first), in a folder named by the
  digest of everything that determines the result: a later run continues exactly this work and never other work;
- that folder says in `run.json` whose work it is, so that unfinished runs are known (`bagger runs --unfinished`);
- it ends with a run record in `data/runs/`: what about the run is not repeatable (times, host, commit) and so must not
  stand in a table.

Run from the project's root, as DVC does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from flows.command import OUR_ROOMS, say
from flows.process import acquire_lock, die_with_dvc
from store.digest import canonical_json, digest, file_sha256, make_id

WORK_FOLDER = Path(".work")
RUNS_FOLDER = Path("data/runs")
RUN_FILE = "run.json"  # in a work folder: whose work it is
PACKAGES = ("torch", "diffusers", "transformers", "lancedb", "dvc", "prefect", "numpy")


class StageError(ValueError):
    """A stage that cannot start."""


class Stage:
    """The run of one stage, as a context manager.

    Attributes:
        run_id: `run-…`, made of stage, round, params and inputs: the same work has the same id, also when done again.
        work: folder for work in progress; gone after success, found again after a crash.
        outputs: what the run made, by name (digests, counts): fill it in; it goes to the run record.
        device: where it ran ("cpu", "cuda: NVIDIA H200"); set it; it goes to the run record.
        flow_run_id: the Prefect flow run, where there was one; set it; it goes to the run record.

    Args:
        name: the stage's name in dvc.yaml.
        round: r0, r1 …, or None for a stage without rounds.
        params: what of params.yaml determines the result (sections or plain values); never `resources`.
        inputs: name → digest of everything else that determines it (a manifest's digest, `path_digest` of a folder).
        resources: what may change a result's last bits (batch size, device): work in progress under others is not
            continued, since a table that mixes them would equal no uninterrupted run's.
        record: whether to leave a run record; not for stages that only present what others have made.

    Raises:
        StageError: dvc, which started the stage, is gone.
        BusyError: the same stage still runs in another process.
    """

    def __init__(
        self,
        name: str,
        round: str | None = None,
        *,
        params: Mapping[str, Any] | None = None,
        inputs: Mapping[str, str] | None = None,
        resources: Mapping[str, Any] | None = None,
        record: bool = True,
    ) -> None:
        self.name = name
        self.round = round
        self.params = {key: _plain(value) for key, value in (params or {}).items()}
        self.inputs = dict(inputs or {})
        self.outputs: dict[str, Any] = {}
        self.device = "cpu"
        self.flow_run_id: str | None = None
        identity = {"stage": name, "round": round, "params": self.params, "inputs": self.inputs}
        self.run_id = make_id("run", identity)
        # Other code may continue no work that this code began, although the run keeps its id: equal results of changed
        # code shall leave the tables, which hold the id, as they were.
        self.work = WORK_FOLDER / f"{self.label}-{digest([identity, dict(resources or {}), _loaded_code()])[:16]}"
        self._record = record
        self._lock: TextIO | None = None
        self._started = 0.0

    @property
    def label(self) -> str:
        """Stage and round in file names: `rollout-r1`, `seed`."""
        return self.name if self.round is None else f"{self.name}-{self.round}"

    @property
    def record_path(self) -> Path:
        """Where the run record goes: data/runs/rollout_r1.json, data/runs/seed.json."""
        return RUNS_FOLDER / f"{self.label.replace('-', '_')}.json"

    def __enter__(self) -> Self:
        if "DVC_STAGE" in os.environ and not die_with_dvc():
            raise StageError(f"{self.label}: dvc, which started this, is gone; run `dvc repro` again")
        self._lock = acquire_lock(WORK_FOLDER / f"{self.label}.lock", self.label)
        resumed = self.work.is_dir() and any(file.name != RUN_FILE for file in self.work.iterdir())
        self.work.mkdir(parents=True, exist_ok=True)
        if resumed:
            say(f"{self.label}: continues what an interrupted run left in {self.work}")
        self._started = time.time()
        self._say_whose()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            if kind is None:
                if self._record:
                    self._write_record()
                for folder in WORK_FOLDER.glob(f"{self.label}-*"):  # with what older inputs or code left behind
                    if folder.is_dir() and len(folder.name) == len(self.work.name):
                        shutil.rmtree(folder)
        finally:
            if self._lock:
                self._lock.close()

    def _say_whose(self) -> None:
        """`run.json` in the work folder; a run that continues another keeps the time at which that began."""
        path = self.work / RUN_FILE
        begun = _iso(self._started)
        with contextlib.suppress(OSError, ValueError, AttributeError):  # not there, or not ours
            begun = json.loads(path.read_text(encoding="utf-8")).get("begun_at", begun)
        facts = {"stage": self.name, "round": self.round, "run_id": self.run_id, "begun_at": begun}
        write_json(path, facts | {"pid": os.getpid(), "host": platform.node()})

    def _write_record(self) -> None:
        ended = time.time()
        write_json(
            self.record_path,
            {
                "run_id": self.run_id,
                "stage": self.name,
                "round": self.round,
                "params": self.params,
                "inputs": self.inputs,
                "outputs": self.outputs,
                "git_commit": git_commit(),
                "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
                "flow_run_id": self.flow_run_id,
                "device": self.device,
                "host": platform.node(),
                "was_associated_with": f"bagger {importlib.metadata.version('bagger')}",
                "started_at_time": _iso(self._started),
                "ended_at_time": _iso(ended),
                "seconds": round(ended - self._started, 3),
            },
        )


def path_digest(path: Path | str) -> str:
    """Digest of a file's bytes, or of all files of a folder with their relative names (sha256, 64 hex digits).

    Raises:
        StageError: nothing is there.
    """
    path = Path(path)
    if path.is_file():
        return file_sha256(path)
    if not path.is_dir():
        raise StageError(f"{path}: not found; `dvc repro` makes it, `dvc pull` fetches it")
    files = sorted(file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    return digest({file.relative_to(path).as_posix(): file_sha256(file) for file in files})


def write_json(path: Path, value: Any) -> None:
    """Writes readable JSON in one rename: a reader sees the old file or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    text = json.dumps(json.loads(canonical_json(value)), indent=1, sort_keys=True, ensure_ascii=False)
    draft.write_text(text + "\n", encoding="utf-8")
    draft.replace(path)


def git_commit() -> str | None:
    """The commit of the working tree, with `+` where tracked files were edited since; None outside of git."""
    try:
        args = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
        done = subprocess.run(args, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def pick_device(name: str) -> str:
    """`resources.device` as torch knows it: auto is the first GPU, else the CPU.

    Raises:
        StageError: a GPU was asked for and torch sees none.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        torch_name = f"torch {torch.__version__}"
        raise StageError(f"resources.device: found {name!r}, but {torch_name} sees no GPU; expected auto or cpu")
    return name


def torch_workers(device: str, workers: int) -> int:
    """How many threads shall run torch at once: on a CPU `workers`, each with one core, on a GPU one.

    Small models gain more from a batch on every core than from two cores on a batch; and what one thread computes does
    not depend on the number of cores.
    """
    import torch

    if not device.startswith("cpu"):
        return 1
    torch.set_num_threads(1)
    return workers


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def _plain(value: Any) -> Any:
    """Sections of params, and other frozen settings, as plain values."""
    if hasattr(value, "model_dump"):
        return value.model_dump()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return value


def _loaded_code() -> dict[str, str]:
    """Digest of every source file of this project that is loaded."""
    root = Path(__file__).resolve().parent.parent
    files = set()
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file and name.partition(".")[0] in OUR_ROOMS:
            path = Path(file).resolve()
            if path.is_relative_to(root) and path.relative_to(root).parts[0] in OUR_ROOMS:
                files.add(path)
    return {path.relative_to(root).as_posix(): file_sha256(path) for path in files}

"""Processes that may be killed at any moment: dying with one's parent, and a lock that outlives no one.

DVC leaves its child running when it is killed, and its next run starts a second one beside it. These functions are the
cure: the child dies too, notices if it came too late for that, and never works beside a living twin.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TextIO

from flows.command import say

PR_SET_PDEATHSIG = 1  # linux/prctl.h
SHELLS = ("sh", "ash", "bash", "dash", "fish", "ksh", "mksh", "zsh")


class BusyError(ValueError):
    """The same work still runs in another process."""


def die_with_parent(parent: int | None = None) -> None:
    """From now on this process is killed when the thread that started it ends (Linux; elsewhere nothing happens).

    With SIGKILL: SIGTERM would wait for a long call into torch to return, and Prefect replaces its handler; everything
    a stage writes is safe to kill at any moment, so there is nothing for a gentler signal to save.

    Args:
        parent: process id that the parent must have; if it has already gone, this process ends here.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if parent is not None and os.getppid() != parent:
        raise SystemExit(1)


def die_with_dvc() -> bool:
    """From now on this process, the command of a DVC stage, is killed when `dvc` ends (Linux).

    DVC runs `$SHELL -c COMMAND`. Some shells (bash, zsh) replace themselves by the command and others (dash) stay
    between it and DVC; then a thread watches DVC, as the kernel's parent-death signal reaches one generation only.

    Returns:
        Whether dvc was still there. If not, the parent of now is init or a subreaper, known by its other session.
    """
    if sys.platform != "linux":
        return True
    die_with_parent()
    dvc = os.getppid()
    words = Path(f"/proc/{dvc}/cmdline").read_bytes().split(b"\0")
    if Path(os.fsdecode(words[0])).name.lstrip("-") in SHELLS and b"-c" in words:
        shell, dvc = dvc, _parent_of(dvc)
        watch = os.pidfd_open(dvc)  # from here on the number cannot mean another process
        if _parent_of(shell) != dvc:
            return False
        threading.Thread(target=_die_after, args=(watch,), name="die-with-dvc", daemon=True).start()
    return os.getsid(dvc) == os.getsid(0)


def terminate_stages() -> bool:
    """SIGTERM to the stage commands (`python -m flows.…`) that descend from this process: a training saves on it.

    Not to what stands between, as a shell that ends takes its child along. Returns whether there was one (Linux).
    """
    found = False
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            children.setdefault(_parent_of(int(path.name)), []).append(int(path.name))
    ahead = list(children.get(os.getpid(), ()))
    while ahead:
        pid = ahead.pop()
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            names = {word for word in words[1:4] if word.startswith(b"flows.")}
            if Path(os.fsdecode(words[0])).name.startswith("python") and names - {b"flows.server"}:
                os.kill(pid, signal.SIGTERM)
                found = True
                continue  # what it has started is its own business
        ahead += children.get(pid, ())
    return found


def _die_after(watch: int) -> None:
    poll = select.poll()
    poll.register(watch, select.POLLIN)
    poll.poll()
    os.kill(os.getpid(), signal.SIGKILL)


def _parent_of(pid: int) -> int:
    """Parent of a process (the name in /proc/PID/stat may hold blanks and brackets)."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def acquire_lock(path: Path, label: str, patience: float = 60.0) -> TextIO:
    """Takes a lock that ends with this process at the latest; waits for a predecessor that is still dying.

    Args:
        path: the lock file; it holds the process id of its owner.
        label: what the lock is for, in messages.
        patience: seconds to wait.

    Returns:
        The open file: closing it gives the lock back.

    Raises:
        BusyError: the predecessor is alive and stays so.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.open("a+", encoding="utf-8")
    deadline = time.monotonic() + patience
    told = False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            if time.monotonic() > deadline:
                lock.close()
                raise BusyError(f"{label}: still runs as process {holder}; wait or stop it: kill {holder}") from None
            if not told:
                say(f"{label}: waits for process {holder}, which has not ended yet")
                told = True
            time.sleep(0.2)
    lock.truncate(0)
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    return lock

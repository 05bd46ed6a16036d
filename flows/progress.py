"""A progress bar with the time left, on standard error; in a log file a line now and then instead of a bar."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TextIO

from tqdm import tqdm

LINE_SECONDS = 10.0  # between lines where standard error is no terminal
LINE = "{desc}: {n_fmt}/{total_fmt} {unit} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


class _Lines:
    """A stream for tqdm that ends every state of the bar with a new line instead of painting over it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        line = text.strip("\r\n ")
        if line:
            self._stream.write(line + "\n")

    def flush(self) -> None:
        self._stream.flush()


def progress_bar(total: int, label: str, unit: str = "it", done: int = 0) -> tqdm[None]:
    """A bar to `update(n)`, `set_postfix_str(…)` and `close()`, or to use as a context manager; threads may share it.

    Args:
        total: units of work in all.
        label: what is being done, in front of the bar.
        unit: what is counted: "clip", "step".
        done: units done by an earlier run; the time left is not misled by them.
    """
    terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=done,
        desc=label,
        unit=unit,
        file=sys.stderr if terminal else _Lines(sys.stderr),
        mininterval=0.2 if terminal else LINE_SECONDS,
        maxinterval=0.5 if terminal else LINE_SECONDS,
        miniters=1,
        dynamic_ncols=terminal,
        ascii=not terminal,
        bar_format=None if terminal else LINE,
    )


def note(line: str) -> None:
    """One line on standard error, above the bars that are shown."""
    with tqdm.external_write_mode(file=sys.stderr):
        print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def counting_bar(name: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for work that tells how far it is, as progress(done, total); it begins with the first that is told."""
    bars: list[tqdm[None]] = []

    def show(done: int, total: int) -> None:
        if not bars:
            bars.append(progress_bar(total, name, unit))
        bars[0].update(done - bars[0].n)

    try:
        yield show
    finally:
        for one in bars:
            one.close()

"""What the commands of `bagger` share: how they fail, what they print, which options mean the same everywhere.

Notable: what a command says of its own accord goes to standard error, its answer to standard output; with --json the
answer is one JSON array of flat objects and nothing else.
"""

import contextlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from flows.command import clear_errors, say
from store.errors import printable

if TYPE_CHECKING:
    from store import Store

# How `bagger --help` lists its commands: to ask, to look, to try, to keep whole, to share.
ORDER = (
    "clips stats score lineage reverse rewrites mix diff browse export rollout rounds runs audit gc migrate register "
    "registry publish publish-model fetch"
).split()
SHORT = 24  # characters of a cell that a terminal's table keeps in one line
SIGPIPE_STATUS = 128 + 13

Json = Annotated[bool, typer.Option("--json", help="Print one JSON array of flat objects, and nothing else.")]
StoreUri = Annotated[
    str, typer.Option("--store", metavar="URI", help="The store's folder, or a registry (a folder or s3://…).")
]
Rev = Annotated[
    str | None,
    typer.Option("--rev", metavar="GIT_REV", help="As it was at a commit, branch or tag of git, through DVC."),
]
Out = Annotated[Path, typer.Option("--out", metavar="FILE.mp4", help="The file to write; its folder must be there.")]
Force = Annotated[bool, typer.Option("--force", help="Replace FILE.mp4 if it is there.")]


class CommandError(ValueError):
    """Something a command was asked and cannot do; the message says why."""


class Commands(TyperGroup):
    """Gives every command the project's way to fail, whichever it is."""

    def list_commands(self, ctx: Any) -> list[str]:
        """In the order of ORDER, then the others."""
        return sorted(super().list_commands(ctx), key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))

    def invoke(self, ctx: Any) -> Any:
        with clear_errors(ctx.params["traceback"]), quiet_pipe():
            return super().invoke(ctx)


@contextlib.contextmanager
def quiet_pipe() -> Iterator[None]:
    """Ends without a word when whoever reads standard output has left."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
        raise SystemExit(SIGPIPE_STATUS) from None


def command_group() -> typer.Typer:
    """Commands to be joined to `bagger` by `app.add_typer`; their help is plain text."""
    return typer.Typer(rich_markup_mode=None)


def open_store(uri: str, rev: str | None = None) -> "Store":
    """The store that a command asks; with `rev` as that git revision had it."""
    if rev is not None:
        from flows.revisions import open_revision

        return open_revision(rev, uri)
    from store import Store

    return Store(uri)


def check_out(out: Path, force: bool, endings: Sequence[str] = (".mp4",)) -> None:
    """Refuses an output file that cannot be written, before any work is done for it."""
    if not out.parent.is_dir():
        raise CommandError(f"--out {out}: there is no folder {out.parent}; make it with `mkdir -p {out.parent}`")
    if out.is_dir():
        raise CommandError(f"--out {out}: is a folder; name a file in it")
    if out.suffix.lower() not in endings:
        expected = " or ".join(filter(None, [", ".join(endings[:-1]), endings[-1]]))
        raise CommandError(
            f"--out {out}: found the ending {out.suffix!r}; expected {expected}, which is what is written"
        )
    if out.exists() and not force:
        raise CommandError(f"--out {out}: is there already; --force replaces it")


def write(out: Path, data: bytes) -> None:
    """The file, whole or not at all."""
    with drafted(out) as draft:
        draft.write_bytes(data)


@contextlib.contextmanager
def drafted(out: Path) -> Iterator[Path]:
    """A path to write to; what is there when the block ends becomes the file, and nothing if the block fails."""
    draft = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        yield draft
        draft.replace(out)
    except OSError as error:
        raise CommandError(f"--out {out}: cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def print_json(rows: Iterable[dict[str, Any]]) -> None:
    """One JSON array, an object a line."""
    for piece in json_pieces(rows):
        print(piece, end="")


def json_pieces(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    """The text that `print_json` prints, piece by piece."""
    before = "["
    for row in rows:
        yield before + json.dumps(row, allow_nan=False)
        before = ",\n "
    yield "[]\n" if before == "[" else "]\n"


def print_table(rows: Sequence[dict[str, Any]], columns: Sequence[str], nothing: str = "no such clips") -> None:
    """Rows for a person: in a terminal a table that fits it, elsewhere plain aligned columns. Nothing is cut short.

    nothing: what is said on standard error where there is no row.
    """
    cells = [[_cell(row[column]) for column in columns] for row in rows]
    right = [any(isinstance(row[column], int | float) for row in rows) for column in columns]
    if sys.stdout.isatty():
        _print_rich(cells, columns, right)
    else:
        widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
        for line in [columns, *cells]:
            parts = zip(line, widths, right, strict=True)
            print("  ".join(text.rjust(w) if r else text.ljust(w) for text, w, r in parts).rstrip())
    if not rows:
        say(nothing)


def _print_rich(cells: Sequence[Sequence[str]], columns: Sequence[str], right: Sequence[bool]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    short = [width <= SHORT for width in widths]
    # An id in two lines cannot be copied: long texts give way, unless even then the terminal is too narrow.
    roomy = (
        sum(width + 3 if is_short else SHORT // 2 for width, is_short in zip(widths, short, strict=True))
        <= console.width
    )
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for name, is_short, is_right in zip(columns, short, right, strict=True):
        table.add_column(name, justify="right" if is_right else "left", overflow="fold", no_wrap=is_short and roomy)
    for line in cells:
        table.add_row(*map(Text, line))  # Text: a [word] in a prompt is no markup
    console.print(table)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return printable(str(value))

"""`bagger`: ask the store, follow a clip back to where it came from, take a video out, try a model.

Notable:
- Light: torch, diffusers, prefect and dvc are imported by the command that needs them and by no other (tested), so
  `bagger clips` answers at once. What a command says of its own accord goes to standard error, its answer to standard
  output; with --json the answer is one JSON array of flat objects and nothing else.
- Status 1 is a user's error (`error: …`, one line), 2 a command line that cannot be read, 141 a reader that left
  (`bagger clips | head`), as for any Unix tool.
"""

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from flows import paths
from flows.command import clear_errors, say
from store.errors import printable

COLUMNS = ("clip_id", "round", "drift", "reversal_class", "prompt")
SHORT = 24  # characters of a cell that a terminal's table keeps in one line
SIGPIPE_STATUS = 128 + 13
INTERRUPTED_STATUS = 128 + 2
# Click's UsageError: newer Typers carry a Click of their own, older ones import the package; this finds either.
USAGE_ERROR: type[Exception] = typer.BadParameter.__bases__[0]


class CommandError(ValueError):
    """Something a command was asked and cannot do; the message says why."""


class Commands(TyperGroup):
    """Gives every command the project's way to fail, whichever it is."""

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


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)
Json = Annotated[bool, typer.Option("--json", help="Print one JSON array of flat objects, and nothing else.")]
Store = Annotated[Path, typer.Option("--store", metavar="DIR", help="The store's folder.")]
Out = Annotated[Path, typer.Option("--out", metavar="FILE.mp4", help="The file to write; its folder must be there.")]
Force = Annotated[bool, typer.Option("--force", help="Replace FILE.mp4 if it is there.")]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line given (else the process's own); always ends in SystemExit."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a letter of a prompt shows "?"
    try:
        status = app(arguments, prog_name="bagger", standalone_mode=False)
    except USAGE_ERROR as error:
        context = getattr(error, "ctx", None)
        where = context.command_path if context else "bagger"
        say(f"error: {error.format_message()} (see `{where} --help`)")  # type: ignore[attr-defined]
        status = 2
    raise SystemExit(status or 0)


@app.callback(
    invoke_without_command=True,
    epilog="""\b
Examples:
  bagger clips --sort -drift --limit 5          the corrective clips whose rollouts drifted most
  bagger lineage clip-0123456789abcdef          what that clip was made of
  bagger export clip-0123456789abcdef --out clip.mp4
  bagger COMMAND --help                         more examples""",
)
def options(
    context: typer.Context,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where an error came from.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    """The store of a BAgger project and its models, from the command line. Run it in the project's root folder.

    A clip is a `seed` clip (real, round r0) or a `corrective` one: a model's rollout played backwards, so that it
    leads from drifted frames back to real ones.
    """
    if version:
        from importlib.metadata import version as version_of

        print(f"bagger {version_of('bagger')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command(
    epilog="""\b
Examples:
  bagger clips --sort -drift --limit 5        most drift first (drift: least first)
  bagger clips --round r2 --columns clip_id,drift_motion,prompt
  bagger clips --where "drift > 2 and reversal_class = 'equivariant' and prompt like '%red%'"
  bagger clips --kind all --at r1 --json      the data set that round r1 trains on, seed clips and all
  bagger clips --json | python -m json.tool"""
)
def clips(
    round: Annotated[str | None, typer.Option(metavar="rK", help="Only clips of this round; r0: seed clips.")] = None,
    kind: Annotated[str | None, typer.Option(help="corrective (unless you say otherwise), seed or all.")] = None,
    sort: Annotated[str | None, typer.Option(metavar="COLUMN", help="Ascending; -COLUMN: descending.")] = None,
    where: Annotated[
        str | None,
        typer.Option(
            metavar="EXPR",
            help="A filter: columns, 'text', numbers, = != < <= > >=, AND, OR, NOT, IN, BETWEEN, LIKE, ILIKE, IS NULL.",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", help="At most so many.")] = None,
    columns: Annotated[
        str | None,
        typer.Option(metavar="A,B", help=f"What to show; else {', '.join(COLUMNS)}, in JSON everything."),
    ] = None,
    at: Annotated[str | None, typer.Option(metavar="rK", help="The aggregated data set as of a round.")] = None,
    as_json: Json = False,
    store: Store = paths.STORE,
) -> None:
    """List clips and their scores.

    Corrective clips only, unless --kind or --round r0 says otherwise.
    """
    from store import query

    chosen = list(dict.fromkeys(one.strip() for one in columns.split(","))) if columns is not None else None
    wanted = chosen if chosen or as_json else list(COLUMNS)
    rows = query.clips(
        store, round=round, kind=kind, sort=sort, where=where, limit=limit, columns=wanted, at=at
    )  # fmt: skip
    if as_json:
        print_json(rows)
    else:
        print_table(rows, [column.lower() for column in wanted or ()])


@app.command(
    epilog="""\b
Examples:
  bagger lineage clip-0123456789abcdef      of a corrective clip: rollout, model, seed clip, rewrite
  bagger lineage seed-0123456789abcdef      of a seed clip: the file it was cut from
  bagger lineage model-0123456789abcdef     of a model: what it was trained on, where it started
  bagger lineage r2                         of a round"""
)
def lineage(
    any_id: Annotated[str, typer.Argument(metavar="ID", help="A clip, rollout, rewrite, model, plan, run or round.")],
    as_json: Json = False,
    store: Store = paths.STORE,
) -> None:
    """Show everything a thing was made of, as a tree.

    With --json each thing of the tree is an object; `child` is the id of what it was made into (null for ID itself)
    and a nested fact is named by its path, as in `settings.num_steps`.
    """
    from store.lineage import lineage as trace
    from store.lineage import render_tree

    tree = trace(store, any_id)
    if as_json:
        print_json(flat_tree(tree))
    else:
        print(render_tree(tree))


@app.command(
    epilog="""\b
Examples:
  bagger export clip-0123456789abcdef --out clip.mp4                from drifted to real
  bagger export clip-0123456789abcdef --forward --out rollout.mp4   its rollout, as generated
  bagger export seed-0123456789abcdef --out seed.mp4 --force"""
)
def export(
    clip_id: Annotated[str, typer.Argument(metavar="CLIP_ID", help="A clip, seed clip or rollout.")],
    out: Out,
    forward: Annotated[bool, typer.Option("--forward", help="Of a corrective clip: its rollout.")] = False,
    force: Force = False,
    store: Store = paths.STORE,
) -> None:
    """Write the stored video of a clip to a file.

    The very bytes that the store keeps, of any seed clip, corrective clip or rollout.
    """
    from store.digest import bytes_sha256

    check_out(out, force)
    found = video_row(store, clip_id)
    if forward:
        if "rollout_id" not in found or "clip_id" not in found:
            raise CommandError(f"{clip_id} is no corrective clip and plays forward already; leave out --forward")
        found = video_row(store, found["rollout_id"])
    name = found.get("clip_id") or found["rollout_id"]
    if bytes_sha256(found["video"]) != found["video_sha256"]:
        raise CommandError(f"{name}: the stored video is damaged (its sha256 differs); mend it with `dvc checkout`")
    write(out, found["video"])
    length = f"{found['num_frames']} frames, {found['num_frames'] / found['fps']:.3g} s"
    print(f"{out}: {name}, {length}, {found['prompt']!r}")


@app.command(
    epilog="""\b
Examples:
  bagger rollout --model models/r3 --prompt "an orange square shrinks over a cloudy olive background" \\
                 --seconds 12 --out red.mp4
  bagger rollout --model models/r3 --start seed-0123456789abcdef --seconds 12 --out r3.mp4
  bagger rollout --model models/r3 --extend boat.mov --prompt "a boat leaves" --seconds 5 --out longer.mp4
  bagger rollout --model models/r3 --prompts story.txt --seconds 90 --out story.mp4

\b
story.txt, one prompt a line, each from a time on, in seconds or m:ss:
  # what happens
  0       a red circle moves left over a grey background
  4.5     a red circle grows over a grey background
  1:04.5  a red circle fades over a grey background"""
)
def rollout(
    model: Annotated[Path, typer.Option(metavar="DIR", help="A model of this project, as models/r1.")],
    seconds: Annotated[
        float,
        typer.Option(metavar="N", help="Length, rounded up to whole chunks; with --extend: of what is added."),
    ],
    out: Out,
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What to show; --start has one of its own.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="What to show when, a line `TIME PROMPT` each (see below); changes at the nearest chunk.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Another number, another video.")] = 0,
    start: Annotated[
        str | None, typer.Option(metavar="CLIP_ID", help="Continue the true first chunk of this seed clip.")
    ] = None,
    extend: Annotated[
        Path | None,
        typer.Option(metavar="VIDEO", help="Continue this video file, scaled, cropped and resampled as seed clips."),
    ] = None,
    force: Force = False,
    store: Store = paths.STORE,
) -> None:
    """Let a model generate a video.

    Chunk by chunk, as in a round: sampler, chunk, size and rate are those of params.yaml. Without --start or --extend
    everything is generated from noise. With --start the first chunk is the seed clip's own and counts as part of the
    length; with --extend the file holds the given video and then what is added, and times of --prompts count from where
    that begins.

    The file grows as frames come. Ctrl-C ends it there: what was generated so far is a whole video, status 130.
    """
    from flows import video
    from flows.params import load_params

    request = video.Request(model, out, seconds, seed, prompt, prompts, start, extend, store)
    check_out(out, force)
    with video.CtrlC() as ctrl_c:
        try:
            made = video.make(request, load_params(), ctrl_c)
        except KeyboardInterrupt:
            say(f"{out}: stopped before the first frame; nothing was written")
            raise typer.Exit(INTERRUPTED_STATUS) from None
        print(made.line)
    if isinstance(made.stopped, KeyboardInterrupt):
        raise typer.Exit(INTERRUPTED_STATUS)
    if made.stopped is not None:
        raise made.stopped


@app.command(
    epilog="""\b
Examples:
  bagger rounds 4 && dvc repro          one round more than before: only that one is computed"""
)
def rounds(count: Annotated[int, typer.Argument(metavar="N", help="How many rounds after r0.")]) -> None:
    """Set the number of rounds in params.yaml.

    Settings of the rounds that stay, and comments, are kept.
    """
    from flows.params import PARAMS_FILE, set_rounds

    if not PARAMS_FILE.is_file():
        raise CommandError(f"{PARAMS_FILE}: no such file; run this from the project's root folder")
    before = PARAMS_FILE.read_bytes()
    names = set_rounds(count)
    change = "as before" if PARAMS_FILE.read_bytes() == before else "`dvc repro` computes what is new"
    print(f"{PARAMS_FILE}: rounds {', '.join(names)} ({change})")


# ---------------------------------------------------------------- what the commands share


def video_row(store: Path, video_id: str) -> dict[str, Any]:
    """The sealed row of a seed clip, corrective clip or rollout, with its video but without latents.

    Raises StoreError with the nearest ids if the store does not know the id, CommandError if it means no video.
    """
    from store.lineage import lineage as trace
    from store.schema import table_schema
    from store.table import read_table, table_names

    for name in table_names(store):
        if name.partition("_")[0] not in ("seed", "rollouts", "clips"):
            continue
        schema, key = table_schema(name)
        quoted = video_id.replace("'", "''")
        columns = [column for column in schema.names if column != "latents"]
        if found := read_table(store, name, columns, where=f"{key} = '{quoted}'").to_pylist():
            return dict(found[0])
    known = trace(store, video_id)
    raise CommandError(f"{video_id} is a {known['type']}, which has no video; `bagger lineage {video_id}` tells more")


def check_out(out: Path, force: bool) -> None:
    """Refuses an output file that cannot be written, before any work is done for it."""
    if not out.parent.is_dir():
        raise CommandError(f"--out {out}: there is no folder {out.parent}; make it with `mkdir -p {out.parent}`")
    if out.is_dir():
        raise CommandError(f"--out {out}: is a folder; name a file in it")
    if out.suffix.lower() != ".mp4":
        raise CommandError(f"--out {out}: found the ending {out.suffix!r}; expected .mp4, which is what is written")
    if out.exists() and not force:
        raise CommandError(f"--out {out}: is there already; --force replaces it")


def write(out: Path, data: bytes) -> None:
    """The file, whole or not at all."""
    draft = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        draft.write_bytes(data)
        draft.replace(out)
    except OSError as error:
        raise CommandError(f"--out {out}: cannot be written: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def print_json(rows: Sequence[dict[str, Any]]) -> None:
    """One JSON array, an object a line."""
    lines = ",\n ".join(json.dumps(row, allow_nan=False) for row in rows)
    print(f"[{lines}]")


def flat_tree(tree: dict[str, Any], child: str | None = None) -> list[dict[str, Any]]:
    """A lineage tree as flat objects, each before what it was made of: id, type, child, and its facts by path."""
    facts = {key: value for key, value in tree.items() if key not in ("id", "type", "parents")}
    row = {"id": tree["id"], "type": tree["type"], "child": child, **_flat(facts)}
    return [row, *(one for parent in tree["parents"] for one in flat_tree(parent, tree["id"]))]


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """Nested mappings and lists as one mapping: {"a": {"b": [1]}} -> {"a.b.0": 1}."""
    if not isinstance(value, dict | list):
        return {path: value}
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    return {k: v for key, one in pairs for k, v in _flat(one, f"{path}.{key}" if path else str(key)).items()}


def print_table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    """Rows for a person: in a terminal a table that fits it, elsewhere plain aligned columns. Nothing is cut short."""
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
        say("no such clips")


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


if __name__ == "__main__":
    main()

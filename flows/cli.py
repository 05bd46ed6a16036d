"""`bagger`: ask the store, follow things back and forth, look at clips, try a model, keep the data whole, share it.

Notable:
- Light: torch, diffusers, prefect and dvc are imported by the command that needs them and by no other (tested), so
  `bagger clips` answers at once. The commands that ask the store have modules of their own, `cli_…`.
- Status 1 is a user's error (`error: …`, one line), 2 a command line that cannot be read, 141 a reader that left
  (`bagger clips | head`), as for any Unix tool.
"""

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from flows import (
    cli_browse,
    cli_clips,
    cli_diff,
    cli_health,
    cli_hub,
    cli_lineage,
    cli_mix,
    cli_registry,
    cli_rewrites,
    cli_score,
    paths,
)
from flows.command import say
from flows.console import CommandError, Commands, Force, Out, StoreUri, check_out

INTERRUPTED_STATUS = 128 + 2
# Click's UsageError: newer Typers carry a Click of their own, older ones import the package; this finds either.
USAGE_ERROR: type[Exception] = typer.BadParameter.__bases__[0]

app = typer.Typer(
    cls=Commands,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)
for commands in (
    cli_clips, cli_score, cli_lineage, cli_rewrites, cli_mix, cli_diff, cli_health, cli_registry, cli_hub, cli_browse
):  # fmt: skip
    app.add_typer(commands.app)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line given (else the process's own); always ends in SystemExit."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a letter of a prompt shows "?"
    try:
        status = _command()(arguments, prog_name="bagger", standalone_mode=False)
    except USAGE_ERROR as error:
        context = getattr(error, "ctx", None)
        where = context.command_path if context else "bagger"
        say(f"error: {error.format_message()} (see `{where} --help`)")  # type: ignore[attr-defined]
        status = 2
    raise SystemExit(status or 0)


@functools.cache
def _command() -> Any:
    """The commands as Click has them."""
    return typer.main.get_command(app)


@app.callback(
    invoke_without_command=True,
    epilog="""\b
Examples:
  bagger clips --sort -drift --limit 5          the corrective clips whose rollouts drifted most
  bagger stats                                  drift and its parts by round
  bagger score a.mp4                            how far any video has drifted, and which way
  bagger lineage clip-0123456789abcdef          what that clip was made of
  bagger reverse "a car drives into a tunnel"   what is true of it played backwards
  bagger browse                                 look at clips beside their rollouts
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
    store: StoreUri = str(paths.STORE),
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

    request = video.Request(model, out, seconds, seed, prompt, prompts, start, extend, Path(store))
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


if __name__ == "__main__":
    main()

"""`bagger score`: how far videos have drifted, of files anywhere and of clips in the store."""

import io
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows import paths
from flows.command import RESUMES, say
from flows.console import CommandError, Rev, StoreUri, command_group, open_store, print_json, print_table
from store.errors import nearest, printable

if TYPE_CHECKING:
    from flows.measures import Metrics
    from flows.score_files import ClipScore

ALL = "all"  # clips
LIST = "list"  # of metrics
STORED_UNIT = "clip"  # of corrective clips
MOST_WORKERS = 4  # each holds a video in memory
INTERRUPTED_STATUS = 128 + 2
_CLIP_ID = re.compile(r"(clip|seed)-[\w-]+")

app = command_group()


@app.command(
    epilog="""\b
Examples:
  bagger score a.mp4 b.mp4                    how far each has drifted from its first 15 %, and which way
  bagger score outputs/ --json                all videos in a folder
  bagger score a.mp4 --prefix 9               the first 9 frames are real (0.2 or 20%: a share, 1.5s: seconds)
  bagger score outputs/*.mp4 --out scores     scores.csv, curves.csv, deltas.csv, curves.png in the folder scores
  bagger score a.mp4 --prefix 9 --chunk 12 --json --deltas    seam at chunk borders, slope a chunk
  bagger score a.mp4 --metrics clip_score --prompt "a boat leaves the harbour"
  bagger score --metrics list                 which metrics there are, and what each needs
  bagger score --clips "round = 'r2' and drift > 3"           stored clips, as bagger clips --where finds them
  bagger score --clips all --kind seed --out seeds            real clips against their own first chunk
  bagger score --clips all --metrics subject_consistency      measures what is missing and keeps it

\b
drift: 0 is none, 1 about what real clips do by themselves. Its seven parts are signed:
  saturation  under-saturating (-), over-saturating (+)     cast     color-casting (+)
  exposure    darkening, over-exposing                      motion   freezing, speeding-up
  contrast    losing-contrast, gaining-contrast             flicker  steadying, flickering
  detail      blurring, noising
drift_parts names the parts that moved further than real clips', most first."""
)
def score(
    videos: Annotated[
        list[str] | None,
        typer.Argument(metavar="[VIDEO]...", help="Video files, or folders of them."),
    ] = None,
    video: Annotated[
        list[str] | None, typer.Option("--video", metavar="FILE", help="The same. Again for one more.")
    ] = None,
    clips: Annotated[
        str | None,
        typer.Option(metavar="FILTER", help="Clips of the store: as `bagger clips --where`, a clip's id, or all."),
    ] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option(metavar="A,B", help="Pretrained metrics to measure as well; `list` shows which there are."),
    ] = None,
    extractor: Annotated[
        list[str] | None,
        typer.Option(metavar="ROLE=NAME", help="Another network for --metrics, also ROLE=NAME:FOLDER. Again for more."),
    ] = None,
    prefix: Annotated[
        str | None,
        typer.Option(metavar="N", help="Of a video: its real prefix: a share as 0.2 or 20%, 9 frames, 1.5s; else 15%."),
    ] = None,
    chunk: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Of a video: frames generated at a time, after the prefix.")
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Of a video: for clip_score; else the folder's metadata.jsonl or .csv."),
    ] = None,
    max_frames: Annotated[
        int | None, typer.Option(metavar="N", min=2, help="Of a video: read only so many of its frames.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Videos at a time; else as many as processors, 4 at most.")
    ] = None,
    unit: Annotated[
        str | None,
        typer.Option(
            metavar="UNIT",
            help="Of drift: generic (for videos), or the project's own real clips: clip, or evaluation for long ones.",
        ),
    ] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND", help="Of --clips: corrective (unless you say otherwise), seed or all."),
    ] = None,
    sort: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Of --clips: ascending; -COLUMN: descending.")
    ] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", help="Of --clips: at most so many.")] = None,
    at: Annotated[str | None, typer.Option(metavar="rK", help="Of --clips: the data set as of a round.")] = None,
    rev: Rev = None,
    store: StoreUri = str(paths.STORE),
    deltas: Annotated[
        bool, typer.Option("--deltas", help="With --json: the papers' start-end deltas of every feature, too.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array of objects, and nothing else.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV with a header, texts in quotes.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write scores.csv, curves.csv, deltas.csv and curves.png there."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace these files in DIR if they are there.")] = False,
) -> None:
    """Measure how far videos have drifted, and which way.

    Of any video files, in any folder: the first 15 % of the frames stand in for the real ones. Or of clips in the
    store: corrective ones as the rollouts they were made of, whose scores stand in the store already; what --metrics
    adds is measured once and kept in .work/scores. Without --out nothing else is written.

    A video that cannot be read has a row with the gate `undecodable`; status 1 if none could be scored. Each of the
    --workers takes about 1 MB a frame of memory at most, with --metrics four times the raw frames: --max-frames cuts a
    long video.
    """
    names = _names(metrics)
    if names == [LIST]:
        _print_metrics(as_json)
        return
    given = [*(videos or []), *(video or [])]
    of_videos = {"--prefix": prefix, "--chunk": chunk, "--prompt": prompt, "--max-frames": max_frames,
                 "--workers": workers}  # fmt: skip
    of_clips = {"--kind": kind, "--sort": sort, "--limit": limit, "--at": at, "--rev": rev}
    if bool(given) == (clips is not None):
        raise CommandError(
            "say what to score: either videos, as `bagger score a.mp4`, or clips of the store, as "
            "`bagger score --clips \"round = 'r1'\"`"
        )
    for name, value in (of_videos if clips is not None else of_clips).items():
        if value is not None:
            raise CommandError(f"{name} goes with {'videos' if name in of_videos else '--clips'}")
    if as_json and as_csv:
        raise CommandError("--json and --csv exclude each other")
    if deltas and not as_json:
        raise CommandError("--deltas goes with --json; --out DIR writes them to deltas.csv")
    if force and out is None:
        raise CommandError("--force goes with --out DIR")
    from flows.measures import PREFIX, UNITS, VideoRules, load_metrics, parse_prefix, score_videos
    from flows.score_files import check_folder
    from model.metrics import check

    if unit is not None and unit not in UNITS:
        raise CommandError(f"--unit {unit!r}: expected {', '.join(UNITS)}{nearest(unit, UNITS)}")
    rules = VideoRules(unit or UNITS[0], parse_prefix(PREFIX if prefix is None else prefix), chunk, max_frames)
    check(names)
    if out is not None:
        check_folder(out, force)
    if clips is not None:
        opened = open_store(store, rev)
        rows = _clips(opened, clips, {"kind": kind, "at": at, "sort": sort, "limit": limit})
        if unit not in (None, STORED_UNIT) and any(row["kind"] == "corrective" for row in rows):
            say(f"--unit {unit} is for seed clips: the drift of corrective ones stands in the store, in the unit "
                f"{STORED_UNIT}")  # fmt: skip
        measured = load_metrics(names, extractor or ())
        found = _interruptible(opened, rows, unit, measured, deltas or out is not None)
    else:
        prompts = _videos(given, prompt, names)
        measured = load_metrics(names, extractor or ())
        _tell_unit(rules.unit)
        found = list(score_videos(prompts, rules, measured, workers or min(MOST_WORKERS, os.cpu_count() or 1)))
    _print(found, list(measured.names), as_json, as_csv, deltas)
    if out is not None and not found:
        say(f"{out}: no clips, so nothing is written")
    elif out is not None:
        from flows.score_files import write_files

        write_files(out, found, _shown(found, measured.names))
        say(f"{out}: scores, curves and deltas of {len(found)} {'clip' if clips is not None else 'video'}"
            f"{'' if len(found) == 1 else 's'}, and a plot")  # fmt: skip
    if found and clips is None and all(one.scores["drift"] is None for one in found):
        raise CommandError(
            f"none of {len(found)} videos could be scored" if len(found) > 1 else "it could not be scored"
        )


def _names(metrics: Sequence[str] | None) -> list[str]:
    return [name.strip() for one in metrics or () for name in one.split(",") if name.strip()]


def _print_metrics(as_json: bool) -> None:
    from model.metrics import METRICS, REFUSED, ROLES

    rows = []
    for name, metric in METRICS.items():
        roles = [f"{role} ({ROLES[role] or 'a file'})" for role in metric.roles]
        needs = [*roles, *(["a prompt"] if metric.prompt else [])]
        rows.append({"metric": name, "needs": ", ".join(needs) or "nothing", "what": metric.summary})
    if as_json:
        print_json(rows)
        return
    print_table(rows, ["metric", "needs", "what"])
    say(f"not to be had: {', '.join(REFUSED)}; asking for one says why and what to use instead")


# -------------------------------------------------------------------------------------------------------------- videos


def _videos(given: Sequence[str], prompt: str | None, metrics: Sequence[str]) -> dict[str, str | None]:
    """Path -> prompt, each file once, in the order given."""
    from model.metrics import METRICS

    asked = [name for name in metrics if METRICS[name].prompt]
    if prompt is not None and not asked:
        raise CommandError(f"--prompt is for --metrics {', '.join(n for n, m in METRICS.items() if m.prompt)}")
    prompts: dict[str, str | None] = {}
    for one in given:
        if os.path.isdir(one):
            prompts |= _folder(one, bool(asked) and prompt is None)
        elif os.path.isfile(one):
            prompts.setdefault(one, None)  # that of its folder, named before
        else:
            what = "is no file" if os.path.exists(one) else "no such file or folder"
            raise CommandError(f"{printable(one)}: {what}")
    if asked:
        prompts = {path: prompt if prompt is not None else own for path, own in prompts.items()}
        if absent := [path for path, own in prompts.items() if not (own and own.strip())]:
            raise CommandError(
                f"{asked[0]} compares frames with a prompt, and {printable(absent[0])} has none; give --prompt TEXT, "
                "or a folder with metadata.jsonl"
            )
    return prompts


def _folder(folder: str, captions: bool) -> dict[str, str | None]:
    """Videos below a folder, sorted; hidden ones are left out. With captions of its metadata, if asked for."""
    from store.folder import METADATA_NAMES, VIDEO_SUFFIXES, read_folder

    found: dict[str, str | None] = {}
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES:
                found[os.path.join(root, name)] = None
    if not found:
        raise CommandError(f"{printable(folder)}: no video in it ({', '.join(sorted(VIDEO_SUFFIXES))})")
    if captions and any(os.path.isfile(os.path.join(folder, name)) for name in METADATA_NAMES):
        own = {os.path.abspath(clip.path): clip.caption for clip in read_folder(folder).clips}
        found = {path: own.get(os.path.abspath(path)) for path in found}
    return found


def _tell_unit(unit: str) -> None:
    from flows.measures import GENERIC, unit_of

    natural = unit_of(unit)
    if unit == GENERIC:
        say(f"unit of drift: generic, of {natural.num_clips} synthetic clips of {natural.num_frames} frames; longer or "
            "livelier videos change more by themselves (--unit clip takes a project's own real clips)")  # fmt: skip
    else:
        say(f"unit of drift: {unit}, what {natural.num_clips} of this project's real clips of up to "
            f"{natural.num_frames} frames do by themselves")  # fmt: skip


# --------------------------------------------------------------------------------------------------------------- clips


def _clips(store: Any, clips: str, asked: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of the catalog."""
    from flows.score_clips import CLIP
    from store.expression import col

    where: Any = None if clips.strip().lower() == ALL else clips
    if _CLIP_ID.fullmatch(clips.strip()):
        where, asked = col("clip_id") == clips.strip(), {**asked, "kind": asked["kind"] or ["all"]}
    columns = [*CLIP, "experiment"] if store.is_registry else CLIP
    rows: list[dict[str, Any]] = store.clips(where=where, columns=columns, **asked).to_pylist()
    return rows


def _interruptible(
    store: Any, rows: Sequence[dict[str, Any]], unit: str | None, measured: "Metrics", curves: bool
) -> "list[ClipScore]":
    from flows.score_clips import score_clips

    try:
        return score_clips(store, rows, unit, measured, curves)
    except KeyboardInterrupt:
        say(RESUMES)
        raise typer.Exit(INTERRUPTED_STATUS) from None


# -------------------------------------------------------------------------------------------------------------- answer


def _shown(found: "Sequence[ClipScore]", metrics: Sequence[str]) -> list[str]:
    """The metrics asked for, else all that the store knows of these clips."""
    return list(metrics) or list(dict.fromkeys(name for one in found for name in one.metrics))


def _print(found: "Sequence[ClipScore]", metrics: Sequence[str], as_json: bool, as_csv: bool, deltas: bool) -> None:
    from flows.score_files import csv_lines

    metrics = _shown(found, metrics)
    if as_json:
        print_json(one.json(metrics, deltas) for one in found)
    elif as_csv:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="surrogateescape")  # a file's name need not be UTF-8; it is shown as it is
        rows: Iterable[dict[str, Any]] = (one.flat(metrics) for one in found)
        if sys.stdout.isatty():  # a terminal must not be steered by what it shows
            rows = ({k: printable(v) if isinstance(v, str) else v for k, v in row.items()} for row in rows)
        for line in csv_lines(list(rows)):
            print(line, end="")
    else:
        lines = [one.line(metrics) for one in found]
        print_table(lines, list(lines[0]) if lines else ["clip_id", "drift"])

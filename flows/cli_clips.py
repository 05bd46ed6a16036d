"""`bagger clips`, `bagger stats` and `bagger export`: find clips by what is known of them, sum up, take videos out.

Notable: what a filter means is decided in the store (store/filters.py); here stand the options, and which of them
contradict each other.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows import paths
from flows.command import say
from flows.console import (
    CommandError,
    Force,
    Json,
    Out,
    Rev,
    StoreUri,
    check_out,
    command_group,
    open_store,
    print_json,
    print_table,
    write,
)
from store.errors import printable

if TYPE_CHECKING:
    from store.filters import Filters

COLUMNS = ("clip_id", "round", "drift", "reversal_class", "prompt")
SUMMARY = ("clips", "gated", "measure", "min", "10 %", "median", "90 %", "max", "mean")

app = command_group()


def _many(name: str, metavar: str, text: str) -> Any:
    return typer.Option(name, metavar=metavar, help=f"{text} Again for one more.")


Rounds = Annotated[list[str] | None, _many("--round", "rK", "Only clips of this round; r0: seed clips.")]
Kinds = Annotated[list[str] | None, _many("--kind", "KIND", "corrective (unless you say otherwise), seed or all.")]
Runs = Annotated[
    list[str] | None,
    _many(
        "--run", "RUN_ID", "Clips that a run made, whose rollouts, rewrites or scores it made, or that it trained on."
    ),
]
Drift = Annotated[
    str | None, typer.Option(metavar="LOW:HIGH", help="Drift in this range, ends included; 2: at least, :1 at most.")
]
Parts = Annotated[
    list[str] | None,
    _many(
        "--part",
        "NAME",
        "What moved: under-saturating, over-saturating, darkening, over-exposing, losing-contrast, gaining-contrast, "
        "blurring, noising, color-casting, freezing, speeding-up, steadying, flickering; or none.",
    ),
]
Text = Annotated[str | None, typer.Option(metavar="WORDS", help="The prompt has all these words.")]
Classes = Annotated[
    list[str] | None,
    _many(
        "--class", "CLASS", "What reversal does to the prompt: invariant, equivariant, novel, irreversible, unknown."
    ),
]
Verdicts = Annotated[
    list[str] | None, _many("--verdict", "VERDICT", "Of the rewrite: passed, or the name of a check that failed.")
]
Experiments = Annotated[list[str] | None, _many("--experiment", "NAME", "Only this experiment of a registry.")]
Where = Annotated[
    str | None,
    typer.Option(
        metavar="EXPR",
        help="A filter: columns, 'text', numbers, = != < <= > >=, AND, OR, NOT, IN, BETWEEN, LIKE, ILIKE, IS NULL.",
    ),
]
At = Annotated[str | None, typer.Option(metavar="rK", help="The aggregated data set as of a round.")]
Csv = Annotated[bool, typer.Option("--csv", help="Print CSV with a header, texts in quotes.")]


@app.command(
    epilog="""\b
Examples:
  bagger clips --sort -drift --limit 5        most drift first (drift: least first)
  bagger clips --round r2 --round r3 --part freezing --drift 2:
  bagger clips --text "red circle" --class irreversible --columns clip_id,drift_parts,prompt
  bagger clips --like clip-0123456789abcdef   clips that look like it (--embedding words: such a prompt)
  bagger clips --like "a red circle grows"    clips with such a prompt
  bagger clips --where "drift_part = 'freezing'"    that moved most (--part: at all)
  bagger clips --where "drift > 2 and oracle_object_present < 1 and prompt like '%red%'" --count
  bagger clips --kind all --at r1 --json      the data set that round r1 trains on, seed clips and all
  bagger clips --sort -drift --limit 4 --out worst.mp4    beside their rollouts and seed clips
  bagger clips --round r2 --out r2.parquet --with-video"""
)
def clips(
    round: Rounds = None,
    kind: Kinds = None,
    run: Runs = None,
    drift: Drift = None,
    part: Parts = None,
    text: Text = None,
    like: Annotated[
        str | None,
        typer.Option(metavar="CLIP_ID|WORDS", help="The nearest first, 10 unless --limit says otherwise."),
    ] = None,
    embedding: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Compare by this: look (unless you say otherwise, for a clip) or words."),
    ] = None,
    reversal_class: Classes = None,
    verdict: Verdicts = None,
    experiment: Experiments = None,
    where: Where = None,
    sort: Annotated[str | None, typer.Option(metavar="COLUMN", help="Ascending; -COLUMN: descending.")] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", help="At most so many.")] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            help=f"What to show, or all; else {', '.join(COLUMNS)}, in JSON, CSV and files all.",
        ),
    ] = None,
    count: Annotated[bool, typer.Option("--count", help="Only print how many there are.")] = False,
    at: At = None,
    rev: Rev = None,
    as_json: Json = False,
    as_csv: Csv = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write FILE.csv, .json, .parquet, .png (contact sheet) or .mp4 (grid with rollouts and seed clips).",
        ),
    ] = None,
    with_video: Annotated[bool, typer.Option("--with-video", help="With FILE.parquet: the mp4 bytes, too.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it is there.")] = False,
    store: StoreUri = str(paths.STORE),
) -> None:
    """List clips by their scores, count them, write them to a file.

    Corrective clips only, unless --kind, --run or --round r0 says otherwise.
    """
    filters: Filters = {
        "round": round, "kind": kind, "run": run, "drift": _range(drift), "part": part, "text": text,
        "reversal_class": reversal_class, "verdict": verdict, "experiment": experiment, "where": where, "at": at,
    }  # fmt: skip
    ending = out.suffix.lower() if out else ""
    picture = ending in (".png", ".mp4")
    _exclude({"--json": as_json, "--csv": as_csv, "--out": out is not None})
    _exclude({"--count": count, "--csv": as_csv, "--out": out is not None})
    for name, given in {"--like": like, "--sort": sort, "--limit": limit, "--columns": columns}.items():
        _exclude({"--count": count, name: given is not None})
    _exclude({"--like": like is not None, "--sort": sort is not None})
    _exclude({f"--out {out}": picture, "--columns": columns is not None})
    if embedding is not None and like is None:
        raise CommandError("--embedding says by what --like compares; give --like, too")
    if with_video and ending != ".parquet":
        raise CommandError("--with-video goes with --out FILE.parquet")
    if force and out is None:
        raise CommandError("--force goes with --out FILE")
    if out is not None:
        from flows.clip_files import ENDINGS

        check_out(out, force, ENDINGS)
    opened = open_store(store, rev)
    if count:
        number = opened.count(**filters)
        print_json([{"clips": number}]) if as_json else print(number)
        return
    wanted = _columns(columns)
    if wanted is None and not (as_json or as_csv or out):
        wanted = list(COLUMNS) if columns is None else None
        if wanted and like is not None:
            wanted.insert(2, "distance")
        if wanted and opened.is_registry:
            wanted.insert(1, "experiment")
    asked: dict[str, Any] = {"like": like, "embedding": embedding, "sort": sort, **filters}
    if out is not None:
        _write(opened, asked, wanted, limit, out, with_video)
        return
    found = opened.clips(**asked, limit=limit, columns=wanted)
    _print(found, as_json, as_csv)


def _write(
    store: Any, asked: dict[str, Any], wanted: list[str] | None, limit: int | None, out: Path, video: bool
) -> None:
    from flows.clip_files import FOR_PICTURES, FOR_VIDEOS, PICTURES, write_clips

    most = PICTURES.get(out.suffix.lower()) if limit is None and asked["like"] is None else None
    extra: list[str] = []
    if out.suffix.lower() in PICTURES:
        wanted = list(FOR_PICTURES)
    elif video and wanted is not None:
        extra = FOR_VIDEOS
    scanned = None if wanted is None else [*wanted, *extra]
    found = store.clips(**asked, limit=limit if most is None else most + 1, columns=scanned)
    if most is not None and len(found) > most:
        say(f"{out}: the first {most} clips; more match, --limit N shows more")
        found = found.slice(0, most)
    columns = found.column_names if wanted is None else list(dict.fromkeys(one.lower() for one in wanted))
    write_clips(store, found, columns, out, video)
    print(f"{out}: {len(found)} clip{'' if len(found) == 1 else 's'}")


@app.command(
    epilog="""\b
Examples:
  bagger stats                                by round
  bagger stats --by reversal_class --round r3
  bagger stats --by round,drift_part --csv    one row a group, all quantiles side by side
  bagger stats --by round --text "red circle" --json"""
)
def stats(
    by: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN", help="A column of texts, or several: A,B. Otherwise round.")
    ] = None,
    round: Rounds = None,
    kind: Kinds = None,
    run: Runs = None,
    drift: Drift = None,
    part: Parts = None,
    text: Text = None,
    reversal_class: Classes = None,
    verdict: Verdicts = None,
    experiment: Experiments = None,
    where: Where = None,
    at: At = None,
    rev: Rev = None,
    as_json: Json = False,
    as_csv: Csv = False,
    store: StoreUri = str(paths.STORE),
) -> None:
    """Sum up clips by group: how many, and how drift is spread.

    With the share that failed a hard gate, and quantiles of drift and each of its parts. Corrective clips only, unless
    --kind, --run or --round r0 says otherwise. The table has a line for each measure, JSON and CSV have a row for each
    group.
    """
    _exclude({"--json": as_json, "--csv": as_csv})
    keys = [name.strip() for one in by or ["round"] for name in one.split(",")]
    found = open_store(store, rev).stats(
        keys, round=round, kind=kind, run=run, drift=_range(drift), part=part, text=text,
        reversal_class=reversal_class, verdict=verdict, experiment=experiment, where=where, at=at,
    )  # fmt: skip
    if as_json or as_csv:
        _print(found, as_json, as_csv)
        return
    from store.query import plain_rows

    names = found.column_names[: found.column_names.index("clips")]
    lines = [line for row in plain_rows(found) for line in _summary(row, names)]
    print_table(lines, [*names, *SUMMARY])


def _summary(row: dict[str, Any], names: list[str]) -> list[dict[str, Any]]:
    """A group as lines for a person, one for each measure."""
    head = {name: row[name] for name in names} | {"clips": row["clips"]}
    head["gated"] = None if row["gated"] is None else f"{row['gated']:.1%}"
    lines = []
    for measure in [name.removesuffix("_median") for name in row if name.endswith("_median")]:
        values = [row[f"{measure}_{one}"] for one in ("min", "q10", "median", "q90", "max", "mean")]
        if measure == "drift" or values[0] is not None:
            named = zip(SUMMARY[3:], values, strict=True)
            lines.append({**head, "measure": measure.removeprefix("drift_"), **dict(named)})
    return lines


def _print(found: Any, as_json: bool, as_csv: bool) -> None:
    from flows.clip_files import csv_pieces, flat_rows

    if as_json:
        print_json(flat_rows(found))
    elif as_csv:
        # A terminal must not be steered by what it shows; a file or a pipe gets every text as it is.
        shown = _printable_lines if sys.stdout.isatty() else str
        for piece in csv_pieces(found):
            print(shown(piece), end="")
    else:
        print_table(list(flat_rows(found)), found.column_names)


def _printable_lines(text: str) -> str:
    return "\n".join(map(printable, text.replace("\r\n", "\n").split("\n")))


def _exclude(options: dict[str, bool]) -> None:
    """Of these options one at most."""
    given = [name for name, is_given in options.items() if is_given]
    if len(given) > 1:
        raise CommandError(f"{given[0]} and {given[1]} exclude each other")


def _columns(columns: str | None) -> list[str] | None:
    """Names given as A,B; None for all."""
    if columns is None or columns.strip().lower() == "all":
        return None
    return list(dict.fromkeys(one.strip() for one in columns.split(",")))


def _range(drift: str | None) -> tuple[float | None, float | None] | None:
    """2:5 -> (2.0, 5.0), 2: -> (2.0, None), :1 -> (None, 1.0)."""
    if drift is None:
        return None
    low, colon, high = drift.partition(":")
    try:
        if not colon or not (low.strip() or high.strip()):
            raise ValueError
        return (float(low) if low.strip() else None, float(high) if high.strip() else None)
    except ValueError:
        raise CommandError(f"--drift {drift!r}: expected LOW:HIGH, LOW: or :HIGH, as 2:5") from None


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
    store: StoreUri = str(paths.STORE),
) -> None:
    """Write the stored video of a clip to a file.

    The very bytes that the store keeps, of any seed clip, corrective clip or rollout.
    """
    from store.digest import bytes_sha256

    check_out(out, force)
    opened = open_store(store)
    found = opened.video(clip_id)
    if forward:
        if "rollout_id" not in found or "clip_id" not in found:
            raise CommandError(f"{clip_id} is no corrective clip and plays forward already; leave out --forward")
        found = opened.video(found["rollout_id"])
    name = found.get("clip_id") or found["rollout_id"]
    if bytes_sha256(found["video"]) != found["video_sha256"]:
        raise CommandError(f"{name}: the stored video is damaged (its sha256 differs); mend it with `dvc checkout`")
    write(out, found["video"])
    length = f"{found['num_frames']} frames, {found['num_frames'] / found['fps']:.3g} s"
    print(f"{out}: {name}, {length}, {found['prompt']!r}")

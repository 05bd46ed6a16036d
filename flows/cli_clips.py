"""`bagger clips` and `bagger export`: find clips by their scores, and take their videos out."""

from typing import Annotated

import typer

from flows import paths
from flows.console import (
    CommandError,
    Force,
    Json,
    Out,
    StoreUri,
    check_out,
    command_group,
    open_store,
    print_json,
    print_table,
    write,
)

COLUMNS = ("clip_id", "round", "drift", "reversal_class", "prompt")

app = command_group()


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
    store: StoreUri = str(paths.STORE),
) -> None:
    """List clips and their scores.

    Corrective clips only, unless --kind or --round r0 says otherwise.
    """
    from store.query import plain_rows

    chosen = list(dict.fromkeys(one.strip() for one in columns.split(","))) if columns is not None else None
    wanted = chosen if chosen or as_json else list(COLUMNS)
    found = open_store(store).clips(
        round=round, kind=kind, sort=sort, where=where, limit=limit, columns=wanted, at=at
    )  # fmt: skip
    rows = plain_rows(found)
    if as_json:
        print_json(rows)
    else:
        print_table(rows, [column.lower() for column in wanted or ()])


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

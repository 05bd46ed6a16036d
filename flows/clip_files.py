"""Clips that were found, as text and as files: csv, json, parquet, a contact sheet (png), a grid of videos (mp4).

Notable: csv, json and parquet hold the same values row by row; texts are exactly those of the store, so a prompt that
begins with "=" is a formula to a spreadsheet that is not told to import texts. Videos are read in pieces, so a file of
many clips takes no more memory than a few of them; every video's sha256 is checked on the way.
"""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from flows.console import CommandError, drafted, json_pieces
from store.query import plain_rows

if TYPE_CHECKING:
    import numpy as np

    from store import Store

ENDINGS = (".csv", ".json", ".parquet", ".png", ".mp4")
PICTURES = {".png": 16, ".mp4": 8}  # ending -> clips shown unless a limit is given
FOR_VIDEOS = ["clip_id", "kind", "table"]
FOR_PICTURES = [
    *FOR_VIDEOS,
    "drift",
    "prompt",
    "rollout_id",
    "seed_clip_id",
    "round",
    "fps",
    "num_frames",
    "height",
    "width",
]
_BATCH = 4096  # rows turned into text at a time
_VIDEOS = 32  # videos held at a time
_CELL = 128  # pixels: about the height of a clip in a grid
_MAX_BYTES = 4 * 2**30  # of a grid's frames in memory


def flat_rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Rows as flat JSON-able dicts; a list, as an embedding, is one text with spaces between."""
    for start in range(0, len(table), _BATCH):
        for row in plain_rows(table.slice(start, _BATCH)):
            yield {key: _listed(value) if isinstance(value, list) else value for key, value in row.items()}


def _listed(values: Iterable[Any]) -> str:
    return " ".join(f"{one:.9g}" if isinstance(one, float) else str(one) for one in values)


def csv_pieces(table: pa.Table) -> Iterator[str]:
    """The rows as CSV with a header; every text in quotes, an unknown value as an empty one."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow(table.column_names)
    for row in flat_rows(table):
        writer.writerow(row.values())
        if buffer.tell() > 2**16:
            yield _emptied(buffer)
    yield _emptied(buffer)


def _emptied(buffer: io.StringIO) -> str:
    text = buffer.getvalue()
    buffer.seek(0)
    buffer.truncate()
    return text


def write_clips(store: "Store", found: pa.Table, columns: Sequence[str], out: Path, with_video: bool = False) -> None:
    """The clips found as a file whose ending says what it is, whole or not at all.

    found: rows of the catalog with `columns` and, where videos are to be read, FOR_VIDEOS or FOR_PICTURES.
    Raises CommandError or StoreError for what cannot be shown, and for a damaged video.
    """
    ending = out.suffix.lower()
    if ending in PICTURES and not len(found):
        raise CommandError(f"--out {out}: no such clips, so there is nothing to show")
    with drafted(out) as draft:
        if ending == ".png":
            draft.write_bytes(_sheet(store, found))
        elif ending == ".mp4":
            draft.write_bytes(_grid(store, found, out))
        elif ending == ".parquet":
            _write_parquet(store, found, columns, draft, with_video)
        else:
            chosen = found.select(columns)
            pieces = csv_pieces(chosen) if ending == ".csv" else json_pieces(flat_rows(chosen))
            with open(draft, "w", encoding="utf-8", newline="") as file:
                file.writelines(pieces)


def _write_parquet(store: "Store", found: pa.Table, columns: Sequence[str], draft: Path, with_video: bool) -> None:
    import pyarrow.parquet as pq

    from flows.progress import progress_bar

    chosen = found.select(columns)
    if not with_video:
        pq.write_table(chosen, draft)
        return
    schema = chosen.schema.append(pa.field("video", pa.large_binary(), metadata={b"doc": b"mp4 bytes"}))
    with pq.ParquetWriter(draft, schema) as writer, progress_bar(len(found), "videos", "clip") as bar:
        for start in range(0, len(found), _VIDEOS):
            part = found.slice(start, _VIDEOS)
            names = part["clip_id"].to_pylist()
            bytes_of = videos(store, zip(part["table"].to_pylist(), names, strict=True))
            column = pa.array([bytes_of[name] for name in names], pa.large_binary())
            writer.write_table(chosen.slice(start, _VIDEOS).append_column(schema.field("video"), column))
            bar.update(len(part))


def videos(store: "Store", wanted: Iterable[tuple[str, str]]) -> dict[str, bytes]:
    """mp4 bytes by id, of (table, id of a clip or rollout); in a registry the table of that kind is asked.

    Raises StoreError for a missing table, CommandError for a video that is missing or damaged.
    """
    from store.digest import bytes_sha256
    from store.expression import col, render
    from store.schema import table_schema

    ids: dict[str, list[str]] = {}
    for table, one in wanted:
        ids.setdefault(table.partition("_")[0] if store.is_registry else table, []).append(one)
    found = {}
    for table, names in ids.items():
        try:
            schema, key = table_schema(table)
        except ValueError as error:
            raise CommandError(f"{names[0]}: the catalog says that it lies in {table!r}: {error}") from None
        rows = store.read(table, [key, "video", "video_sha256"], render(col(key).is_in(names), schema))
        for row in rows.to_pylist():
            if bytes_sha256(row["video"]) != row["video_sha256"]:
                raise CommandError(
                    f"{row[key]}: the stored video is damaged (its sha256 differs); mend it with `dvc checkout`"
                )
            found[row[key]] = row["video"]
        if absent := [one for one in names if one not in found]:
            raise CommandError(f"{absent[0]}: table {table} does not hold it; `bagger audit` tells more")
    return found


# ------------------------------------------------------------------------------------------------------------ pictures


def _sheet(store: "Store", found: pa.Table) -> bytes:
    from store.pictures import contact_sheet

    rows = plain_rows(found)
    shown = _frames(store, [(row["table"], row["clip_id"]) for row in rows])
    return contact_sheet([shown[row["clip_id"]] for row in rows], labels=[_label(row) for row in rows])


def _grid(store: "Store", found: pa.Table, out: Path) -> bytes:
    """A column for each clip: the corrective clip, the rollout it plays backwards, and that rollout's seed clip."""
    from store.pictures import grid_video

    rows = plain_rows(found)
    if len({row["kind"] for row in rows}) > 1:
        raise CommandError(f"--out {out}: a grid shows corrective or seed clips, not both; choose with --kind")
    size = {(row["height"], row["width"], row["fps"]) for row in rows}
    if len(size) > 1:
        seen = ", ".join(f"{w}x{h} at {fps:g} fps" for h, w, fps in sorted(size))
        raise CommandError(f"--out {out}: a grid needs clips of one size and rate, saw {seen}; choose with --where")
    ((height, width, fps),) = size
    sources = {"seed clip": [("seed", row["clip_id"]) for row in rows]}
    if rows[0]["kind"] == "corrective":
        sources = {
            "corrective": [(row["table"], row["clip_id"]) for row in rows],
            "its rollout": [(f"rollouts_{row['round']}", row["rollout_id"]) for row in rows],
            "its seed clip": [("seed", row["seed_clip_id"]) for row in rows],
        }
    scale = max(1, round(_CELL / height))
    needed = len(sources) * len(rows) * max(row["num_frames"] for row in rows) * height * width * 3 * (1 + scale**2)
    if needed > _MAX_BYTES:
        raise CommandError(
            f"--out {out}: a grid of {len(rows)} such clips would take {needed / 2**30:.1f} GiB of memory; "
            "give a smaller --limit"
        )
    shown = _frames(store, dict.fromkeys(one for source in sources.values() for one in source))
    grid = {label: [shown[one] for _, one in source] for label, source in sources.items()}
    return grid_video(grid, fps, scale=scale, titles=[_label(row).partition("  ")[2] for row in rows])


def _label(row: dict[str, Any]) -> str:
    drift = "" if row["drift"] is None else f"drift {row['drift']:.3g}  "
    return f"{row['clip_id']}  {drift}{row['prompt']}"


def _frames(store: "Store", wanted: Iterable[tuple[str, str]]) -> "dict[str, np.ndarray]":
    from flows.progress import progress_bar
    from store.video import decode_video

    bytes_of = videos(store, wanted)
    frames = {}
    with progress_bar(len(bytes_of), "decode", "clip") as bar:
        for name, data in bytes_of.items():
            frames[name] = decode_video(data)
            bar.update(1)
    return frames

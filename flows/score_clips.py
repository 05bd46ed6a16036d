"""Scores of clips in the store, and what `bagger score` keeps of them.

Notable:
- A corrective clip is scored as the rollout that it plays backwards, in generation order. Its drift stands in the store
  already and is never measured again; a seed clip's is measured against the clip's own first chunk.
- What is measured on a stored clip is kept in `.work/scores`, beside the sealed tables and unknown to git and DVC, by
  what it is a function of: the video's sha256, the networks' identity, the unit of drift. So it may be deleted at any
  time, is never stale, and an interrupted command goes on where it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from flows.clip_files import videos
from flows.measures import GENERIC, PREFIX, UNDECODABLE, Metrics, Units, parse_prefix
from flows.progress import note, progress_bar
from flows.score_files import ClipScore
from flows.scorer import Scored, known, known_curve
from model import drift, metrics
from store.digest import canonical_json, digest
from store.errors import printable
from store.schema import FEATURES
from store.table import WorkingTable
from store.video import VideoError, decode_video

if TYPE_CHECKING:
    from store import Store

KEPT_FOLDER = Path(".work/scores")
KEPT = pa.schema(
    [
        pa.field("measure_id", pa.string(), nullable=False),  # digest of all that the result is a function of
        pa.field("name", pa.string(), nullable=False),  # a metric, or drift
        pa.field("video_sha256", pa.string(), nullable=False),
        pa.field("result", pa.string(), nullable=False),  # JSON
    ]
)
BATCH = 8  # stored clips measured before what was found is kept
SUMMARY = (*(f"drift_{name}" for name in drift.PARTS), "drift", "drift_z", "drift_part", "drift_parts", "gates",
           "scorer", "seam", "naturalness_drift", "latent_drift")  # fmt: skip


# --------------------------------------------------------------------------------------------------------- kept results


class Kept:
    """What was measured on stored clips, by measure_id."""

    def __init__(self, folder: Path = KEPT_FOLDER) -> None:
        self._table = WorkingTable(folder, "measures", KEPT, "measure_id")

    def get(self, ids: Iterable[str]) -> dict[str, Any]:
        """Results of those that are there."""
        ids = list(dict.fromkeys(ids))
        absent = set(self._table.missing(ids))
        there = [one for one in ids if one not in absent]
        found = self._table.read(["measure_id", "result"], there).to_pylist() if there else []
        return {row["measure_id"]: json.loads(row["result"]) for row in found}

    def put(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """measure_id, name, video_sha256 and result (JSON-able) of each; all at once or, where killed, none."""
        self._table.upsert([{**row, "result": canonical_json(row["result"])} for row in rows])


# -------------------------------------------------------------------------------------------------------- stored clips


@dataclass(frozen=True)
class Film:
    """The video that a stored clip is scored by: its rollout's, or a seed clip's own."""

    table: str
    id: str
    video_sha256: str
    prompt: str
    fps: float
    num_frames: int
    height: int
    width: int
    prefix_frames: int | None  # None, and no chunks: a rollout of which nothing is to be measured
    chunk_frames: int | None
    unit: str


FILM = ["prompt", "fps", "num_frames", "height", "width", "video_sha256"]
ROLLOUT = [*FILM, "rollout_id", "prefix_frames", "prefix_latents", "chunk_latents", "latents_shape"]
CLIP = ["clip_id", "kind", "round", "rollout_id", "table", *FILM]


def score_clips(
    store: Store, clips: Sequence[Mapping[str, Any]], unit: str | None, measured: Metrics, curves: bool
) -> list[ClipScore]:
    """Scores of stored clips, rows of the catalog with CLIP (and `experiment`, of a registry), in their order.

    unit: of seed clips; None: `clip`, or `evaluation` for those that are longer. curves: read those of corrective
    clips. Only what neither the store nor `.work/scores` knows is measured. Raises CommandError or StoreError for a
    video that is missing or damaged; what was measured until then is kept.
    """
    corrective = [row for row in clips if row["kind"] == "corrective"]
    rows = {row["rollout_id"]: row for row in _read(store, "scores", corrective, _score_columns(curves))}
    rollouts: dict[str, Any] = {}
    if curves or measured.names:  # a table with videos, which --rev would bring here first
        rollouts = {row["rollout_id"]: row for row in _read(store, "rollouts", corrective, ROLLOUT)}
    units = Units()
    films = [_film(clip, rollouts, units, unit) for clip in clips]
    kept = Kept()
    wanted: dict[str, tuple[str, Film]] = {}  # measure_id
    plans = []  # for each clip: name -> measure_id, and what the store knows
    for clip, film in zip(clips, films, strict=True):
        stored = _stored_measures(rows[clip["rollout_id"]], measured) if clip["kind"] == "corrective" else {}
        names = [name for name in measured.names if name not in stored]
        ids = {name: _measure_id(name, film, measured, units) for name in names}
        if clip["kind"] == "seed":
            ids["drift"] = _measure_id("drift", film, measured, units)
        wanted |= {one: (name, film) for name, one in ids.items()}
        plans.append((ids, stored))
    results = kept.get(wanted)
    problems = _measure(store, {k: v for k, v in wanted.items() if k not in results}, results, kept, measured, units)
    return [
        _told(clip, film, rows.get(clip["rollout_id"]), {name: results.get(one) for name, one in ids.items()},
              stored, problems.get(film.id))
        for clip, film, (ids, stored) in zip(clips, films, plans, strict=True)
    ]  # fmt: skip


def _measure(
    store: Store,
    missing: Mapping[str, tuple[str, Film]],
    results: dict[str, Any],
    kept: Kept,
    measured: Metrics,
    units: Units,
) -> dict[str, str]:
    """Measures what is missing, keeps it and adds it to results. Returns what could not be measured: id -> why."""
    by_film: dict[Film, list[tuple[str, str]]] = {}
    for measure_id, (name, film) in missing.items():
        by_film.setdefault(film, []).append((name, measure_id))
    todo: list[tuple[Film, list[tuple[str, str]]]] = list(by_film.items())
    problems: dict[str, str] = {}
    if not todo:
        return problems
    with progress_bar(len(todo), "score", "clip") as bar:
        for start in range(0, len(todo), BATCH):
            batch = todo[start : start + BATCH]
            data = videos(store, [(film.table, film.id) for film, _ in batch])
            new: list[dict[str, Any]] = []
            try:
                for film, asked in batch:
                    found, why = _measure_film(data[film.id], film, [name for name, _ in asked], measured, units)
                    if why:
                        problems[film.id] = why
                        note(printable(why))
                    ids = dict(asked)
                    results |= {ids[name]: one for name, one in found.items()}
                    new += [
                        {"measure_id": ids[name], "name": name, "video_sha256": film.video_sha256, "result": one}
                        for name, one in found.items()
                        if one.get("gates") != UNDECODABLE  # another ffmpeg may read it
                    ]
                    bar.update()
            finally:
                kept.put(new)  # also what was measured before Ctrl-C
    return problems


def _measure_film(
    data: bytes, film: Film, names: Sequence[str], measured: Metrics, units: Units
) -> tuple[dict[str, Any], str | None]:
    """JSON-able results by name, and why some are missing."""
    try:
        frames = decode_video(data)
    except VideoError as error:
        empty = {"drift": Scored(drift.unscored([UNDECODABLE])).columns()} if "drift" in names else {}
        return empty, f"{film.id}: {error}"
    found: dict[str, Any] = {}
    if "drift" in names and film.prefix_frames is not None:
        scorer = units.scorer(film.unit, *frames.shape[1:3])
        found["drift"] = scorer.score(frames, film.prefix_frames, num_frames=film.num_frames).columns()
    try:
        others = measured.measure([name for name in names if name != "drift"], frames, film.prompt, film.fps)
    except metrics.MetricError as error:
        return found, f"{film.id}: {error}"
    for name, one in others.items():
        found[name] = {"value": known(one.value), "curve": known_curve(one.curve)}
    return found, None


def _measure_id(name: str, film: Film, measured: Metrics, units: Units) -> str:
    what: dict[str, Any] = {"name": name, "video": film.video_sha256, "scorer": drift.SCORER}
    if name == "drift":
        scorer = units.scorer(film.unit, film.height, film.width)
        what |= {"unit": scorer.natural.to_json(), "naturalness": scorer.fitted, "prefix_frames": film.prefix_frames,
                 "num_frames": film.num_frames}  # fmt: skip
    else:
        what |= {"extractors": measured.identity(name), "fps": film.fps}
        what |= {"prompt": film.prompt} if metrics.METRICS[name].prompt else {}
    return digest(what)


def _film(clip: Mapping[str, Any], rollouts: Mapping[str, Any], units: Units, unit: str | None) -> Film:
    source, prefix, chunk, own = clip, None, None, unit or "clip"
    table, name = clip["table"], clip["clip_id"]
    if clip["kind"] == "corrective":
        table, name, own = f"rollouts_{clip['round']}", clip["rollout_id"], "clip"
    if name in rollouts:
        source = rollouts[name]
        prefix = source["prefix_frames"]
        later = source["latents_shape"][1] - source["prefix_latents"]  # each of as many frames as the VAE packs
        chunk = (source["num_frames"] - prefix) // later * source["chunk_latents"] if later > 0 else None
    elif clip["kind"] == "seed":
        if unit is None and clip["num_frames"] > units.natural("clip").num_frames:
            own = "evaluation"
        prefix = units.natural(own).prefix_frames
        if own == GENERIC:
            prefix = parse_prefix(PREFIX).frames(clip["num_frames"], clip["fps"])
    facts = {one: source[one] for one in FILM}
    return Film(table=table, id=name, prefix_frames=prefix, chunk_frames=chunk or None, unit=own, **facts)


def _read(store: Store, base: str, clips: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of the rollouts of corrective clips in a table of each round, or a registry's one."""
    ids: dict[str, list[str]] = {}
    for clip in clips:
        ids.setdefault(base if store.is_registry else f"{base}_{clip['round']}", []).append(clip["rollout_id"])
    return [
        row for name, wanted in ids.items()
        for row in store.read(name, columns, ids=list(dict.fromkeys(wanted))).to_pylist()
    ]  # fmt: skip


def _score_columns(curves: bool) -> list[str]:
    return ["rollout_id", *SUMMARY, "measures", *(FEATURES if curves else ())]


def _stored_measures(row: Mapping[str, Any], measured: Metrics) -> dict[str, Any]:
    """Pretrained metrics in the table of scores: all of them, but of those asked for only of the same networks."""
    if not row["measures"]:
        return {}
    told = json.loads(row["measures"])
    found = {one["name"]: one for one in told["measures"]}
    for name in measured.names:
        if name in found:
            there = {role: told["extractors"].get(role) for role in metrics.METRICS[name].roles}
            if canonical_json(there) != canonical_json(measured.identity(name)):
                del found[name]
    return found


def _told(
    clip: Mapping[str, Any], film: Film, row: Mapping[str, Any] | None, results: Mapping[str, Any],
    stored: Mapping[str, Any], problem: str | None,
) -> ClipScore:  # fmt: skip
    head = {name: clip[name] for name in ("clip_id", "experiment", "kind", "round") if name in clip}
    source: Mapping[str, Any] = row or results["drift"] or Scored(drift.unscored([UNDECODABLE])).columns()
    curves = {name: np.asarray(source[name], np.float32) for name in FEATURES if source.get(name) is not None}
    values = {**stored, **{name: one for name, one in results.items() if name != "drift" and one is not None}}
    curves |= {name: np.array([np.nan if x is None else x for x in one["curve"]], np.float32)
               for name, one in values.items()}  # fmt: skip
    numbers = {name: np.nan if one["value"] is None else one["value"] for name, one in values.items()}
    summary = {name: _plain(source.get(name)) for name in SUMMARY}
    return ClipScore(
        head, summary, film.unit, film.num_frames, film.prefix_frames, film.chunk_frames, film.fps, curves, numbers,
        problem,
    )  # fmt: skip


def _plain(value: Any) -> Any:
    """A float32 of the store as the shortest decimal that means it."""
    return float(str(np.float32(value))) if isinstance(value, float) else value

"""Synthetic catalogs and clips, fast and the same every time: the real schemas, ten rounds and the seed data.

Ids and digests are random hexadecimal, prompts are put together from words (15,360 different ones, each about 65 times
in a million), drifts are log-normal, embeddings are small random vectors.
"""

from collections.abc import Iterator
from itertools import permutations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from store.schema import CATALOG, DRIFT_PARTS, NO_PART, VERSION_KEY

ROUNDS = 10
VIDEO_BYTES = (2_000, 8_000)
_HEX = np.frombuffer(b"0123456789abcdef", np.uint8)
_NAMES = [name for directions in DRIFT_PARTS.values() for name in directions if name]
_MOVED = ["", *_NAMES, *(",".join(pair) for pair in permutations(_NAMES, 2))]
_MOST = [one.partition(",")[0] or NO_PART for one in _MOVED]
_CHOICES = {
    "kind": ["corrective"],
    "split": ["train"],
    "gates": ["", "", "", "black"],
    "scorer": ["handmade@1"],
    "reversal_class": ["invariant", "equivariant", "novel", "irreversible"],
    "marker_style": ["none", "prefix"],
    "rewriter_kind": ["toy-grammar"],
    "verdict": ["passed", "passed", "parses"],
}
_PROMPT = (
    "a",
    ["red", "green", "blue", "white", "black", "yellow", "orange", "purple"],
    ["circle", "square", "triangle", "disc", "star"],
    ["moves left", "moves right", "moves up", "moves down", "grows", "shrinks", "circles clockwise", "turns around"],
    "over a",
    ["plain", "striped", "checked", "noisy"],
    ["slate", "mauve", "olive", "sand"],
    "background, the camera",
    ["is still", "zooms in", "pans left"],
)
CLIPS = pa.schema(
    [pa.field("clip_id", pa.string(), False), pa.field("prompt", pa.string()), pa.field("video", pa.large_binary())],
    metadata={VERSION_KEY: CATALOG.metadata[VERSION_KEY]},
)


def hexadecimal(rng: np.random.Generator, count: int, prefix: str = "", digits: int = 16) -> pa.StringArray:
    """Random ids."""
    text = np.empty((count, len(prefix) + digits), np.uint8)
    text[:, : len(prefix)] = np.frombuffer(prefix.encode(), np.uint8)
    text[:, len(prefix) :] = _HEX[rng.integers(0, 16, (count, digits), np.uint8)]
    offsets = np.arange(count + 1, dtype=np.int32) * text.shape[1]
    return pa.StringArray.from_buffers(count, pa.py_buffer(offsets), pa.py_buffer(text))


def prompts(rng: np.random.Generator, count: int) -> pa.Array:
    parts = [
        one if isinstance(one, str) else pa.array(one).take(pa.array(rng.integers(0, len(one), count)))
        for one in _PROMPT
    ]
    return pc.binary_join_element_wise(*parts, " ")


def catalog(rows: int, seed: int = 0) -> Iterator[tuple[str, pa.Table]]:
    """(round, its rows in random order) from r0 on, `rows` in all."""
    shares = np.diff(np.linspace(0, rows, ROUNDS + 2).astype(int))
    for number, count in enumerate(shares.tolist()):
        yield f"r{number}", _round(np.random.default_rng([seed, number]), f"r{number}", count)


def _round(rng: np.random.Generator, name: str, count: int) -> pa.Table:
    seed = name == "r0"
    fixed = {
        "round": name, "kind": "seed" if seed else "corrective", "table": "seed" if seed else f"clips_{name}",
        "model_digest": f"model-{name:0>16}", "was_generated_by": f"run-{name:0>16}",
    }  # fmt: skip
    moved = pa.array(rng.integers(0, len(_MOVED), count))
    columns = []
    for field in CATALOG:
        key, kind = field.name, field.type
        array: pa.Array
        if seed and field.nullable:
            array = pa.nulls(count, kind)
        elif key in fixed:
            array = pa.repeat(fixed[key], count)
        elif key == "clip_id":
            array = hexadecimal(rng, count, "seed-" if seed else "clip-")
        elif key in ("rollout_id", "seed_clip_id", "rewrite_id"):
            array = hexadecimal(rng, count, key.split("_")[0] + "-")
        elif key in ("prompt", "source_prompt"):
            array = prompts(rng, count)
        elif key in ("drift_part", "drift_parts"):
            array = pa.array(_MOST if key == "drift_part" else _MOVED).take(moved)
        elif key in _CHOICES:
            array = pa.array(_CHOICES[key]).take(pa.array(rng.integers(0, len(_CHOICES[key]), count)))
        elif key == "drift":
            array = pa.array(np.exp(rng.normal(0.5, 0.6, count)).astype(np.float32))
        elif key == "was_derived_from":
            array = pa.ListArray.from_arrays(np.arange(0, 2 * count + 1, 2), hexadecimal(rng, 2 * count, "rollout-"))
        elif key == "video_sha256":
            array = hexadecimal(rng, count, digits=64)
        elif pa.types.is_fixed_size_list(kind):
            values = rng.standard_normal(count * kind.list_size, np.float32) / 10
            array = pa.FixedSizeListArray.from_arrays(pa.array(values), type=kind)
        elif kind == pa.float32():
            array = pa.array(rng.standard_normal(count, np.float32))
        else:
            array = pa.repeat(8 if key == "fps" else 32, count)
        columns.append(array if array.type == kind else array.cast(kind))
    return pa.Table.from_arrays(columns, schema=CATALOG)


def clips(rows: int, seed: int = 0) -> pa.Table:
    """Clips with small random blobs for videos, sorted by id as a sealed table is."""
    rng = np.random.default_rng([seed, rows])
    places = np.append(0, rng.integers(*VIDEO_BYTES, rows).cumsum()).astype(np.int64)
    data = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), rows, [None, pa.py_buffer(places), pa.py_buffer(rng.bytes(int(places[-1])))]
    )
    return pa.table([hexadecimal(rng, rows, "clip-"), prompts(rng, rows), data], schema=CLIPS).sort_by("clip_id")

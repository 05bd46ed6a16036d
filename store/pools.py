"""Which clips of the sealed tables a mixture plan may draw, and why it may not draw the others.

Notable: the catalog is made of all rounds at the end; a round mixes before that. So the rows that `where` is asked of
are made here as the catalog makes them, of the rounds that there are, and its filter means what it means to
`bagger clips --where`.
"""

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from store.catalog import SEED_ROUND, round_rows
from store.dataset import write_fresh
from store.errors import StoreError
from store.expression import render_where
from store.mixture import Pool
from store.scan import scan
from store.schema import CATALOG
from store.table import read_table

REASONS = ("gate", "where", "max_clips")  # why a clip is left out, in the order in which they are asked


@dataclass(frozen=True)
class Pools:
    """What a plan may draw.

    left_out: round -> reason -> corrective clips that may not be drawn, sorted; nothing where there are none.
    drift: of the corrective clips that may be drawn; None where it could not be measured.
    """

    pools: list[Pool]
    left_out: dict[str, dict[str, list[str]]]
    drift: dict[str, float | None]


def read_pools(
    store_dir: Path, rounds: Sequence[str], where: str | None = None, max_clips: int | None = None, seed: int = 0
) -> Pools:
    """The seed clips for training and the corrective clips of `rounds`, in order.

    Left out are clips whose rollouts failed a hard gate (model/drift.py), then those of which `where` (a filter as
    store/expression.py reads it, over the columns of CATALOG) does not hold, then all but `max_clips` of each round.
    Which stay is decided by a sha256 of id and seed: always the same, and a clip more changes one of them at most.
    Raises StoreError for a table that is missing or does not fit its sister tables, and for a filter that is none.
    """
    seeds = read_table(store_dir, "seed", ["clip_id"], "split = 'train'")["clip_id"].to_pylist()
    found = Pools([Pool("seed", SEED_ROUND, "seed", seeds)], {}, {})
    for name in rounds:
        rows = round_rows(store_dir, name)
        left_out: dict[str, list[str]] = {}
        ids = rows["clip_id"].to_pylist()
        gates = dict(zip(ids, rows["gates"].to_pylist(), strict=True))
        holds = {
            "gate": {one for one in ids if not gates[one]},
            "where": set(ids) if where is None else _holding(rows, where),
        }
        for reason, good in holds.items():
            left_out[reason] = sorted(set(ids) - good)
            ids = [one for one in ids if one in good]
        chosen = set(ids if max_clips is None else sorted(ids, key=lambda one: _key(seed, one))[:max_clips])
        left_out["max_clips"] = sorted(set(ids) - chosen)
        ids = [one for one in ids if one in chosen]
        drift = dict(zip(rows["clip_id"].to_pylist(), rows["drift"].to_pylist(), strict=True))
        found.pools.append(Pool("corrective", name, f"clips_{name}", ids))
        found.drift.update({one: drift[one] for one in ids})
        if any(left_out.values()):
            found.left_out[name] = {reason: clips for reason, clips in left_out.items() if clips}
    return found


def _holding(rows: pa.Table, where: str) -> set[str]:
    """Clips of which a user's filter holds, by the engine that answers `bagger clips`."""
    try:
        wanted = render_where(where, CATALOG)
    except StoreError as error:
        raise StoreError(f"mixture: {error}") from None
    with tempfile.TemporaryDirectory() as folder:
        dataset = write_fresh(rows.to_batches(), CATALOG, Path(folder, "rows.lance"))
        return set(scan(dataset, ["clip_id"], wanted)["clip_id"].to_pylist())


def _key(seed: int, clip_id: str) -> bytes:
    return hashlib.sha256(f"mixture/{seed}/max_clips/{clip_id}".encode()).digest()

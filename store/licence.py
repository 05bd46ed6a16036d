"""Licences of clips, as their sources state them: whether they let one pass the clips on."""

import re
from collections import Counter
from typing import TYPE_CHECKING

import pyarrow as pa

if TYPE_CHECKING:
    from store.database import Store

OPEN, FORBIDDEN, UNKNOWN = "open", "forbidden", "unknown"
# By the Hub's and SPDX' ids, whatever their case and punctuation; `nc` restricts use, not passing on.
_OPEN = re.compile(
    r"(cc0|cc-by(-nc)?(-sa)?|pddl|odc-by|odbl|cdla-(permissive|sharing)|apache|mit|mit-0|bsd(-[0-9]-clause)?|isc|unlicense"
    r"|public-domain|publicdomain|cc-public-domain|pd|wtfpl|0bsd|zlib|openrail|mpl|gfdl)(-v?[0-9]+(-[0-9]+)*(-[a-z]{2,3})?)?"
)
# What is published is cut, scaled and played backwards: a licence without derivatives (nd) does not let that pass.
_FORBIDDEN = re.compile(
    r"(^|-)(nd|noderivs|no-derivatives|no-redistribution|not-redistribut\w*|no-distribution|proprietary|confidential"
    r"|internal|all-rights-reserved|copyrighted)(-|$)"
)


def judged(license: str | None) -> str:
    """OPEN, FORBIDDEN, or UNKNOWN for no licence and for one that nobody here knows."""
    if license is None:
        return UNKNOWN
    plain = re.sub(r"[^a-z0-9]+", "-", license.lower()).strip("-")
    if _FORBIDDEN.search(plain):
        return FORBIDDEN
    return OPEN if _OPEN.fullmatch(plain) else UNKNOWN


def licences_of(store: "Store", entries: pa.Table) -> pa.Array:
    """The licence of each clip's seed clip, whose frames it ends in; null where the seed clip is not there."""
    seeds = store.read("seed", ["clip_id", "license"]).to_pylist() if "seed" in store.names() else []
    by_id = {one["clip_id"]: one["license"] for one in seeds}
    named = "clip_id" if "seed" in set(entries["kind"].to_pylist()) else "seed_clip_id"
    return pa.array([by_id.get(one) for one in entries[named].to_pylist()], pa.string())


def licences(store: "Store", name: str, where: str | None = None) -> dict[str | None, int]:
    """How many clips of a round stand under which licence: their own, or that of the seed clips they were made of."""
    entries = store.clips(round=name, kind="all", where=where, columns=["clip_id", "kind", "seed_clip_id"])
    return dict(Counter(licences_of(store, entries).to_pylist()))

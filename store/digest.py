"""Content digests: one canonical JSON form, sha256 of it, and the ids made from it.

An id is the digest of the inputs that determine a thing (model digest, seed clip, settings, RNG name …), so it is
known before the work is done; a resumed stage asks which ids are missing and makes only those.

Notable: `1` and `1.0` are different JSON and so different digests; give numbers the type they have in params.yaml.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

KINDS = ("file", "seed", "rollout", "clip", "rewrite", "run", "model", "plan", "table")
ID_DIGITS = 16


def canonical_json(obj: Any) -> str:
    """The one JSON text of `obj`: sorted keys, compact, UTF-8 characters unescaped.

    Raises ValueError for NaN and infinity and for keys that are not strings (JSON would silently merge 1 and "1").
    """
    _check_keys(obj)
    return json.dumps(obj, sort_keys=True, allow_nan=False, separators=(",", ":"), ensure_ascii=False)


def digest(obj: Any) -> str:
    """sha256 of `canonical_json(obj)`, 64 hex digits."""
    return bytes_sha256(canonical_json(obj).encode())


def make_id(kind: str, obj: Any) -> str:
    """`<kind>-<first 16 hex digits of the digest>`; kind is one of KINDS."""
    return id_of(kind, digest(obj))


def id_of(kind: str, full_digest: str) -> str:
    """The id of something whose 64-digit digest is already known (a plan, a model folder)."""
    if kind not in KINDS:
        raise ValueError(f"unknown kind of id {kind!r}; known: {', '.join(KINDS)}")
    return f"{kind}-{full_digest[:ID_DIGITS]}"


def bytes_sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def file_sha256(path: Path | str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_keys(obj: Any) -> None:
    if isinstance(obj, dict):
        for key, value in obj.items():
            if not isinstance(key, str):
                raise ValueError(f"keys must be strings to have one JSON form; got {key!r} ({type(key).__name__})")
            _check_keys(value)
    elif isinstance(obj, list | tuple):
        for value in obj:
            _check_keys(value)

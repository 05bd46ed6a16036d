"""Where rounds and models were published: `publications.jsonl` beside the store's folder, a line each.

Notable: it is no table, for it is not made again by running a stage; it belongs into git.
"""

import datetime
import json
import os
from pathlib import Path
from typing import Any

from store.errors import StoreError
from store.hub import Repo
from store.remote import is_remote

FILE = "publications.jsonl"
COLUMNS = ("kind", "repo", "revision", "tag", "round", "digest", "tables", "model_digest", "published_at", "endpoint")


def record(store_dir: Path, repo: Repo, commit: str, tag: str, **facts: Any) -> Path:
    """Add a publication that was made just now, or replace that of the same repository and tag; gives the file.

    facts: digest and tables of a round, model_digest of a model.
    """
    path = Path(store_dir).parent / FILE
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    fact = {"kind": repo.kind, "repo": repo.name, "endpoint": repo.api.endpoint, "revision": commit, "tag": tag,
            "round": tag, "published_at": now, **facts}  # fmt: skip
    key = ("kind", "endpoint", "repo", "tag")
    kept = [one for one in publications(store_dir) if any(one.get(name) != fact[name] for name in key)]
    rows = sorted([*kept, fact], key=lambda one: (str(one.get("published_at")), str(one.get("repo"))))
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    lines = [json.dumps({name: one.get(name) for name in COLUMNS}, sort_keys=True) + "\n" for one in rows]
    draft.write_text("".join(lines), encoding="utf-8")
    draft.replace(path)
    return path


def publications(store_dir: str | Path) -> list[dict[str, Any]]:
    """Every publication, in order of time. Raises StoreError for a file that cannot be read."""
    path = Path(store_dir).parent / FILE
    if is_remote(store_dir) or not path.is_file():
        return []
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            found.append(dict(json.loads(line)))
        except (ValueError, TypeError) as error:
            raise StoreError(f"{path}:{number}: not a publication ({error}); delete the line") from error
    return found


def published(store_dir: str | Path, **wanted: str | None) -> list[str]:
    """`dataset ORG/NAME@TAG (COMMIT)` of every publication that has these values."""
    return [
        f"{one['kind']} {one['repo']}@{one['tag']} ({str(one['revision'])[:12]})"
        for one in publications(store_dir)
        if all(one.get(name) == value for name, value in wanted.items())
    ]

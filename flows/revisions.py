"""An earlier state of the data, by git revision: the tables that DVC recorded there."""

from __future__ import annotations

from store import Store


def open_revision(rev: str, uri: str) -> Store:
    """The store as it was at a git revision."""
    raise NotImplementedError(rev, uri)

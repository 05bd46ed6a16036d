"""What is kept: tables, manifests, lineage, queries, mixture plans, loading. `from store import Store` opens one."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from store.database import Store

__all__ = ["Store"]


def __getattr__(name: str) -> Any:
    """`Store` brings Lance with it, so it is imported when it is asked for and not by every module of this room."""
    if name == "Store":
        from store.database import Store

        return Store
    raise AttributeError(f"module 'store' has no attribute {name!r}")

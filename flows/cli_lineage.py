"""`bagger lineage`: follow a thing back to all it was made of."""

from typing import Annotated, Any

import typer

from flows import paths
from flows.console import Json, StoreUri, command_group, open_store, print_json

app = command_group()


@app.command(
    epilog="""\b
Examples:
  bagger lineage clip-0123456789abcdef      of a corrective clip: rollout, model, seed clip, rewrite
  bagger lineage seed-0123456789abcdef      of a seed clip: the file it was cut from
  bagger lineage model-0123456789abcdef     of a model: what it was trained on, where it started
  bagger lineage r2                         of a round"""
)
def lineage(
    any_id: Annotated[str, typer.Argument(metavar="ID", help="A clip, rollout, rewrite, model, plan, run or round.")],
    as_json: Json = False,
    store: StoreUri = str(paths.STORE),
) -> None:
    """Show everything a thing was made of, as a tree.

    With --json each thing of the tree is an object; `child` is the id of what it was made into (null for ID itself)
    and a nested fact is named by its path, as in `settings.num_steps`.
    """
    from store.lineage import render_tree

    tree = open_store(store).lineage(any_id)
    if as_json:
        print_json(flat_tree(tree))
    else:
        print(render_tree(tree))


def flat_tree(tree: dict[str, Any], child: str | None = None) -> list[dict[str, Any]]:
    """A lineage tree as flat objects, each before what it was made of: id, type, child, and its facts by path."""
    facts = {key: value for key, value in tree.items() if key not in ("id", "type", "parents")}
    row = {"id": tree["id"], "type": tree["type"], "child": child, **_flat(facts)}
    return [row, *(one for parent in tree["parents"] for one in flat_tree(parent, tree["id"]))]


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """Nested mappings and lists as one mapping: {"a": {"b": [1]}} -> {"a.b.0": 1}."""
    if not isinstance(value, dict | list):
        return {path: value}
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    return {k: v for key, one in pairs for k, v in _flat(one, f"{path}.{key}" if path else str(key)).items()}

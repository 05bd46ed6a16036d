"""`bagger lineage`: follow a thing back to all it was made of, or forwards to all it became."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from flows import paths
from flows.console import CommandError, Json, Rev, StoreUri, command_group, open_store, print_json, write

app = command_group()


@app.command(
    epilog="""\b
Examples:
  bagger lineage clip-0123456789abcdef      of a corrective clip: rollout, model, seed clip, rewrite
  bagger lineage clip-0123                  the same, if no other clip begins so
  bagger lineage seed-0123456789abcdef      of a seed clip: the file it was cut from
  bagger lineage model-0123456789abcdef     of a model: what it was trained on, where it started
  bagger lineage r2                         of a round; in a registry: EXPERIMENT/r2

\b
  bagger lineage seed-0123456789abcdef --forward    rollouts of it, and which models saw it at which steps
  bagger lineage model-0123456789abcdef --forward   what it generated, what was trained from that
  bagger lineage model-0123456789abcdef --forward --all --json    every rollout by name

\b
  bagger lineage clip-0123456789abcdef --mermaid --out clip.mmd   a diagram, for a ```mermaid block
  bagger lineage clip-0123456789abcdef --prov --out clip.json     W3C PROV, as PROV-JSON"""
)
def lineage(
    any_id: Annotated[
        str,
        typer.Argument(
            metavar="ID",
            help="A clip, rollout, rewrite, model, plan, run, file or round; the beginning of an id will do.",
        ),
    ],
    forward: Annotated[
        bool, typer.Option("--forward", help="What became of it and used it, not what it is of.")
    ] = False,
    every: Annotated[bool, typer.Option("--all", help="With --forward: name all that is counted.")] = False,
    as_json: Json = False,
    mermaid: Annotated[bool, typer.Option("--mermaid", help="A Mermaid flowchart, which GitHub draws.")] = False,
    prov: Annotated[bool, typer.Option("--prov", help="A document of W3C PROV, in PROV-JSON.")] = False,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write it there instead of printing it.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it is there.")] = False,
    store: StoreUri = str(paths.STORE),
    rev: Rev = None,
) -> None:
    """Show what a thing was made of, with --forward what it became.

    In the tree a thing is told once, nearest to ID; other mentions say where. ID itself tells all its facts, the others
    the chief ones. With --json each thing of the tree is an object with all of them; `child` (with --forward: `parent`)
    is the id of the thing that led to it, null for ID itself, and a nested fact is named by its path, as in
    `settings.num_steps`. A step is an optimiser step, counted from 0.
    """
    if as_json + mermaid + prov > 1:
        raise CommandError("--json, --mermaid and --prov are three answers; ask for one of them")
    if every and not forward:
        raise CommandError("--all names what --forward counts; add --forward")
    if out is not None:
        _check(out, force)
    opened = open_store(store, rev)
    tree = opened.descendants(any_id, every=every) if forward else opened.lineage(any_id)
    if as_json and out is None:
        print_json(flat_tree(tree))
        return
    text = _render(opened, tree, "json" if as_json else "mermaid" if mermaid else "prov" if prov else "tree")
    if out is None:
        print(text)
    else:
        write(out, f"{text}\n".encode())


def _render(store: Any, tree: dict[str, Any], form: str) -> str:
    if form == "json":
        return "[" + ",\n ".join(json.dumps(row, allow_nan=False) for row in flat_tree(tree)) + "]"
    if form == "prov":
        from store.graph import Graph
        from store.provenance import provenance

        return json.dumps(provenance(Graph(store), tree), indent=1, allow_nan=False)
    from store.tree import mermaid, render_tree

    return mermaid(tree).rstrip("\n") if form == "mermaid" else render_tree(tree)


def _check(out: Path, force: bool) -> None:
    """Refuses an output file that cannot be written, before any work is done for it."""
    if not out.parent.is_dir():
        raise CommandError(f"--out {out}: there is no folder {out.parent}; make it with `mkdir -p {out.parent}`")
    if out.is_dir():
        raise CommandError(f"--out {out}: is a folder; name a file in it")
    if out.exists() and not force:
        raise CommandError(f"--out {out}: is there already; --force replaces it")


def flat_tree(tree: dict[str, Any], source: str | None = None) -> list[dict[str, Any]]:
    """A tree as flat objects, each before those it leads to: id, type, child or parent, and its facts by path."""
    from store.tree import flat

    onward = "parents" if "parents" in tree else "children"
    whence = "child" if onward == "parents" else "parent"
    facts = {key: value for key, value in tree.items() if key not in ("id", "type", onward)}
    row = {"id": tree["id"], "type": tree["type"], whence: source, **flat(facts)}
    return [row, *(one for below in tree[onward] for one in flat_tree(below, tree["id"]))]

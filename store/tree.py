"""Trees of things, backwards or forwards, as text: for a terminal, and as a diagram that GitHub draws.

Notable: prompts, file names and licences are other people's. In a terminal nothing of them steers it or adds a line; in
a diagram every character that Mermaid, Markdown or HTML could read as its own is written as a number.
"""

import re
from collections.abc import Iterator
from typing import Any

from store.errors import printable
from store.schema import DRIFT_PARTS

Node = dict[str, Any]

_WIDTH = 100
_HASH = re.compile(r"[0-9a-f]{40,64}")  # shortened for the terminal, whole in JSON
_MANY = 8  # numbers of a list that the terminal shows
_LABEL = 70  # characters of a text in a diagram
_PLAIN = re.compile(r"[^A-Za-z0-9 ,.:/+\-]")
_HIDDEN = ("id", "type", "parents", "children", "repeated")
# What only the thing that was asked for shows in a terminal; JSON has it for all.
_DETAIL = re.compile(
    "params|flow_run_id|ended_at_time|seconds|device|host|fps|height|width|num_frames|prefix_frames|prefix_latents"
    "|rng_name|extra|.*_sha256|vae_digest|digest|was_generated_by|plan_id|clip_id"
    "|drift_part|drift_z|seam|naturalness_drift|latent_drift|oracle_.*|.*_repeats"
    f"|drift_({'|'.join(DRIFT_PARTS)})"  # drift_parts names those that moved
)
_DETAIL_OF = {
    "rewrite": re.compile(
        "reasons|spans|raw_output|num_attempts|attempts|model_revision|endpoint_kind|.*_digest|sampling|seed|.*_tokens"
    )
}
_SHAPES = {
    "rollout": ("([", "])"),
    "model": ("{{", "}}"),
    "plan": ("[/", "/]"),
    "round": ("[[", "]]"),
    "file": ("[(", ")]"),
    "table": ("[(", ")]"),
    "rewrite": ("(", ")"),
    "run": (">", "]"),
    "use": ("(", ")"),
    "group": ("[\\", "\\]"),
}
_DIAGRAM = ("round", "stage", "drift", "samples", "clips", "source_path", "prompt", "list")  # facts it shows


def branches(node: Node) -> list[Node]:
    """What a node of a tree leads to: its parents, or its children."""
    found: list[Node] = node["parents"] if "parents" in node else node.get("children", [])
    return found


def render_tree(tree: Node) -> str:
    """The tree for a terminal: each thing, its facts indented below, then what it was made of or what became of it.

    The root tells everything, the others what a person asks first.
    """
    lines: list[str] = []
    told: set[str] = set()

    def add(node: Node, first: str, rest: str) -> None:
        repeated = node.get("repeated")
        lines.append(
            f"{first}{_head(node)}" + (f"  (see {'above' if node['id'] in told else 'below'})" * bool(repeated))
        )
        if not repeated:
            told.add(node["id"])
        below = branches(node)
        bar = rest + ("│  " if below else "   ")
        lines.extend(bar + line for line in _fact_lines(node, whole=node is tree))
        for number, one in enumerate(below):
            last = number == len(below) - 1
            add(one, rest + ("└─ " if last else "├─ "), rest + ("   " if last else "│  "))

    add(tree, "", "")
    return "\n".join(map(printable, lines))  # a prompt must not add a line to the tree


def _head(node: Node) -> str:
    if node["type"] == "group":
        return f"{node['count']} {node['of']}"
    return f"{node['type']} {node['id']}"


def _fact_lines(node: Node, whole: bool) -> list[str]:
    """Short facts side by side, texts and nested ones on lines of their own."""
    lines, current = [], ""
    hidden = {*_HIDDEN, *(("count", "of") if node["type"] == "group" else ())}
    if any(one["type"] == "score" for one in branches(node)):
        hidden.add("score")  # told on its own below
    detail = _DETAIL_OF.get(node["type"])
    if detail and not whole:
        hidden |= {key for key in node if detail.fullmatch(key)}
    for key, value in (node if whole else _brief(node)).items():
        if key in hidden or value in (None, "", {}, []):
            continue
        shown = f"{key}: {_shown(value)}"
        if isinstance(value, dict | list) or " " in _shown(value):
            lines.append(shown)
        elif current and len(current) + len(shown) + 3 > _WIDTH:
            lines.append(current)
            current = shown
        else:
            current = f"{current} · {shown}" if current else shown
    return [*lines, current] if current else lines


def _brief(value: Any) -> Any:
    """Facts without details, nested ones too."""
    if isinstance(value, dict):
        return {key: _brief(one) for key, one in value.items() if not _DETAIL.fullmatch(key)}
    return value


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        parts = ((key, _shown(one)) for key, one in value.items() if one not in (None, ""))
        return ", ".join(f"{key} ({one})" if ", " in one else f"{key}={one}" for key, one in parts)
    if isinstance(value, list) and value and all(isinstance(one, int | str) for one in value):
        return ", ".join(map(str, value[:_MANY])) + (f" … {value[-1]}" if len(value) > _MANY else "")
    if isinstance(value, list):
        return "; ".join(_shown(one) for one in value)
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return text[:12] + "…" if _HASH.fullmatch(text) else text


def edges(tree: Node) -> Iterator[tuple[Node, Node]]:
    """(origin, product) for every edge of a tree, whichever way it was walked."""
    backwards = "parents" in tree
    for one in branches(tree):
        yield (one, tree) if backwards else (tree, one)
        yield from edges(one)


def nodes(tree: Node) -> Iterator[Node]:
    """Every thing of a tree once, in full."""
    if not tree.get("repeated"):
        yield tree
    for one in branches(tree):
        yield from nodes(one)


def flat(value: Any, path: str = "") -> Node:
    """Nested mappings and lists as one mapping: {"a": {"b": [1]}} -> {"a.b.0": 1}."""
    if not isinstance(value, dict | list):
        return {path: value}
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    return {k: v for key, one in pairs for k, v in flat(one, f"{path}.{key}" if path else str(key)).items()}


def mermaid(tree: Node) -> str:
    """The tree as a Mermaid flowchart, from origins to what came of them; for a ```mermaid block in Markdown."""
    names = {node["id"]: f"n{number}" for number, node in enumerate(nodes(tree))}
    lines = ["flowchart TD"]
    for node in nodes(tree):
        opening, closing = _SHAPES.get(node["type"], ("[", "]"))
        lines.append(f'  {names[node["id"]]}{opening}"{_label(node)}"{closing}')
    arrows = dict.fromkeys((names[one["id"]], names[other["id"]]) for one, other in edges(tree))
    lines += [f"  {one} --> {other}" for one, other in arrows]
    lines.append(f"  style {names[tree['id']]} stroke-width:3px")
    return "\n".join(lines) + "\n"


def _label(node: Node) -> str:
    named = node["id"].startswith(f"{node['type']}-") and node["type"] != "group"  # an id that tells its type
    parts = [escaped(node["id"] if named else _head(node))]
    for key in _DIAGRAM:
        if node.get(key) not in (None, "", {}, []) and not (node["type"] == "round" and key == "round"):
            parts.append(escaped(f"{key}: {_shown(node[key])}"))
    return "<br/>".join(parts)


def escaped(text: str) -> str:
    """A text as part of a quoted Mermaid label: what is not plain is a character's number, long texts end in …"""
    text = printable(text)
    short = text if len(text) <= _LABEL else text[: _LABEL - 1] + "…"
    return _PLAIN.sub(lambda match: f"#{ord(match[0])};", short)

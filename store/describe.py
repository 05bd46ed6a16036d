"""The tables as a page to read: `python -m store.describe` prints the part of docs/store.md that lists every column."""

from store.schema import table_schema

TABLES = {
    "seed": "One row is a seed clip, a real video. Written by stage `seed`.",
    "rollouts": "One row is what a model generated, in generation order. `rollouts_rK`, by stage `rollout@rK`.",
    "scores": "One row is what was measured on a rollout. `scores_rK`, by stage `score@rK`.",
    "clips": "One row is a corrective clip: a rollout played backwards. `clips_rK`, by stage `correct@rK`.",
    "catalog": "One row is a clip of either kind, without its blobs. By stage `catalog`, one tag a round.",
    "runs": "One row is the run of a stage. By stage `catalog`, from the run records.",
    "uses": "One row is a clip in a mixture plan, and so in a training. By stage `catalog`, from the plans.",
}


def describe() -> str:
    """Every table's columns as markdown: name, type, whether it may be null, meaning and unit."""
    return "\n\n".join(f"### {name}\n\n{what}\n\n{_columns(name)}" for name, what in TABLES.items())


def _columns(name: str) -> str:
    schema, key = table_schema(name)
    lines = ["| column | type | null | meaning |", "|---|---|---|---|"]
    for field in schema:
        doc = field.metadata[b"doc"].decode().replace("|", "\\|")
        shown = f"`{field.name}`" + (" (key)" if field.name == key else "")
        lines.append(f"| {shown} | {field.type} | {'yes' if field.nullable else ''} | {doc} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(describe())

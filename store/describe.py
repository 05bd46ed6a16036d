"""The tables as a page to read: `python -m store.describe` prints the part of docs/store.md that lists every column."""

import pyarrow as pa

from store.schema import REGISTRATIONS, REGISTRY_CATALOG, table_schema

TABLES = {
    "seed": "One row is a seed clip, a real video. Written by stage `seed`.",
    "rollouts": "One row is what a model generated, in generation order. `rollouts_rK`, by stage `rollout@rK`.",
    "rewrites": "One row is how a prompt became that of a reversed clip. `rewrites_rK`, by stage `rewrite@rK`.",
    "scores": "One row is what was measured on a rollout. `scores_rK`, by stage `score@rK`.",
    "clips": "One row is a corrective clip: a rollout played backwards. `clips_rK`, by stage `correct@rK`.",
    "catalog": "One row is a clip of either kind, without its blobs. By stage `catalog`, one tag a round.",
    "runs": "One row is the run of a stage. By stage `catalog`, from the run records.",
    "uses": "One row is a clip in a mixture plan, and so in a training. By stage `catalog`, from the plans.",
}

REGISTRY = """### In a registry

`catalog` has two columns more, and its key is `entry_id`; `scores` is keyed by `rollout_id` and `was_generated_by`,
`rewrites` by `rewrite_id` and `was_generated_by`; `use_id` ends with the model. Table `registrations` has a row for
each round of each experiment.

"""


def describe() -> str:
    """Every table's columns as markdown: name, type, whether it may be null, meaning and unit."""
    tables = [f"### {name}\n\n{what}\n\n{_columns(*table_schema(name))}" for name, what in TABLES.items()]
    more = _columns(pa.schema([REGISTRY_CATALOG.field(name) for name in ("entry_id", "experiment")]), "entry_id")
    return "\n\n".join([*tables, REGISTRY + more, _columns(REGISTRATIONS, "registration_id")])


def _columns(schema: pa.Schema, key: str) -> str:
    lines = ["| column | type | null | meaning |", "|---|---|---|---|"]
    for field in schema:
        doc = field.metadata[b"doc"].decode().replace("|", "\\|")
        shown = f"`{field.name}`" + (" (key)" if field.name == key else "")
        lines.append(f"| {shown} | {field.type} | {'yes' if field.nullable else ''} | {doc} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(describe())

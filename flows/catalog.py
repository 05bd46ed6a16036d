"""Stage `catalog`: every clip of every round as one row of scalars, a tag per round; also runs and training use."""

from __future__ import annotations

import json

from flows import paths
from flows.command import command, say
from flows.params import Params
from flows.stage import RUNS_FOLDER, Stage, path_digest
from store.catalog import build_catalog
from store.table import read_manifest, write_manifest


def main(params: Params, full: bool = False) -> None:
    kinds = ("rollouts", "rewrites", "scores", "clips")
    tables = ["seed", *(f"{kind}_{k}" for k in params.round_names for kind in kinds)]
    inputs = {name: path_digest(paths.manifest(name)) for name in tables}
    inputs["plans"] = path_digest(paths.PLANS)
    with Stage("catalog", params={"rounds": params.round_names}, inputs=inputs, record=False):
        # Rounds that params.yaml no longer has may have left records behind; they are no part of this experiment.
        wanted = {None, "r0", *params.round_names}
        records = [json.loads(path.read_text()) for path in sorted(RUNS_FOLDER.glob("*.json"))]
        records = [record for record in records if record["round"] in wanted]
        plans = {k: paths.plan(k) for k in ("r0", *params.round_names)}
        sources = {name: read_manifest(paths.manifest(name)).digest for name in tables}
        manifest = build_catalog(paths.STORE, params.round_names, records, plans, sources, full)
        write_manifest(manifest, paths.CATALOG_MANIFEST)
        say(f"catalog: {manifest.rows} clips, tags r0 … {params.round_names[-1]}, {len(records)} runs")


if __name__ == "__main__":
    command(main)

"""Stage `base`: the pretrained pipeline that every round starts from, as the folder models/base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flows import paths
from flows.command import command, say
from flows.params import Params
from flows.stage import Stage
from model.pipeline import adopt_folder, load_pipeline, save_base

TOY = Path("assets/toy-base")


def main(params: Params) -> None:
    source = TOY if params.base.source == "toy" else Path(params.base.source)
    with Stage("base", params={"base": params.base}) as stage:
        pipe = load_pipeline(source if source.exists() or params.base.source == "toy" else params.base.source)
        record: dict[str, Any] = {"kind": "base", "source": params.base.source, "run_id": stage.run_id}
        if source.exists():
            record = adopt_folder(source, paths.BASE, record)
        else:
            record = save_base(pipe, paths.BASE, record)
        stage.outputs = {"model_digest": record["digests"]["model"]}
        parameters = sum(p.numel() for p in pipe.transformer.parameters())
        say(f"base: {params.base.source}, {parameters / 1e6:.1f} M parameters, {record['digests']['model']}")


if __name__ == "__main__":
    command(main)

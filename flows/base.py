"""Stage `base`: the pretrained pipeline that every round starts from, as the folder models/base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flows import paths
from flows.command import command, say
from flows.params import Params
from flows.stage import Stage
from model.pipeline import COMPONENTS, adopt_folder, describe_folder, load_pipeline

TOY = Path("assets/toy-base")
FILES = (".json", ".safetensors", ".model", ".txt")


class BaseError(ValueError):
    """A base that is neither here nor on the Hub."""


def main(params: Params) -> None:
    source = TOY if params.base.source == "toy" else Path(params.base.source)
    if not source.is_dir():
        source = download(params.base.source, params.base.revision)
    with Stage("base", params={"base": params.base}, inputs={"model": describe_folder(source)["model"]}) as stage:
        pipe = load_pipeline(source)
        record: dict[str, Any] = {"kind": "base", "source": params.base.source, "run_id": stage.run_id}
        if source.parent.name == "snapshots":
            record["commit"] = source.name
        record = adopt_folder(source, paths.BASE, record)
        stage.outputs = {"model_digest": record["digests"]["model"]}
        parameters = sum(p.numel() for p in pipe.transformer.parameters())
        say(f"base: {params.base.source}, {parameters / 1e6:.1f} M parameters, {record['digests']['model']}")


def download(repo: str, revision: str) -> Path:
    """A Hub repository's pipeline files in the local cache: the folder of the commit that `revision` names now."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["model_index.json", *(f"{name}/*{ending}" for name in COMPONENTS for ending in FILES)]
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=wanted))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BaseError(
            f"params.yaml: base.source: found {repo!r}; expected toy, a pipeline folder, or a Hub id that can be "
            f"downloaded: {reason}"
        ) from error


if __name__ == "__main__":
    command(main)

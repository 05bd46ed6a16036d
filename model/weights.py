"""Weights of others, opened with care: a folder or a Hub repository of safetensors, and what exactly was in it.

Notable: of a repository only JSON, vocabularies and safetensors are ever fetched, at one commit, into the Hub's cache;
the folder is looked at before any library opens it. A library left to itself may fetch a pickle, a conversion that a
robot proposed, or the base model that an adapter names.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FILES = (  # of a repository on the Hub, all that is ever fetched
    "config.json", "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "tokenizer.model", "spiece.model",
    "model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors",
)  # fmt: skip


class WeightsError(ValueError):
    """A folder, repository or file whose weights are not there, cannot be read or must not be opened."""


def find_folder(source: str | Path, revision: str | None) -> tuple[Path, str, str | None]:
    """Where a model's files lie, what it is called, and of which commit they are (None for a folder).

    `source` is a folder or a repository of the Hub; `revision` a branch, tag or commit of the latter. What was fetched
    before is found without a network. WeightsError where it is not to be had.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        if revision is not None:
            raise WeightsError(f"{source} is a folder and has no revision {revision!r}")
        return path, path.resolve().name, None
    if isinstance(source, Path) or str(source).startswith((".", "/", "~")) or str(source).count("/") > 1:
        raise WeightsError(f"{source}: no such folder")
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(str(source), revision=revision, allow_patterns=list(FILES)))
    except (OSError, ValueError) as error:  # the Hub's errors are both kinds
        raise WeightsError(
            f"{source}: cannot be fetched from the Hugging Face Hub ({one_line(error)}); without a network, pass a "
            f"folder, or fetch it before with `hf download {source}`"
        ) from error
    if not re.fullmatch(r"[0-9a-f]{40}", folder.name):
        raise WeightsError(f"{source}: {folder.name!r} is not a commit; scores would not say what made them")
    return folder, str(source), folder.name


def read_config(folder: Path, model_types: Sequence[str]) -> dict[str, Any]:
    """config.json of a folder, whose model_type must be one of the given ones."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeightsError(f"{folder}: no config.json in it, so not a model folder") from None
    except ValueError as error:
        raise WeightsError(f"{folder}/config.json is not JSON: {error}") from error
    found = config.get("model_type") if isinstance(config, dict) else None
    if found not in model_types:
        raise WeightsError(f"{folder} holds a model of type {found!r}, asked for is {' or '.join(model_types)}")
    if (folder / "adapter_config.json").exists():  # it would lead transformers to another repository
        raise WeightsError(f"{folder} holds an adapter; merge it into the model and save that")
    return config


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that will be read. WeightsError where there are none, as in repositories of pickles."""
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    try:
        index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
        names = sorted({str(name) for name in index["weight_map"].values()})
    except FileNotFoundError:
        others = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".pkl", ".h5"))
        raise WeightsError(
            f"{folder}: no model.safetensors in it"
            + (f", only {', '.join(others)}, which can run code when opened" if others else "")
            + "; pass a revision that has one (many repositories keep it at refs/pr/N), or convert it once where you "
            "trust it, with AutoModel.from_pretrained(...).save_pretrained(folder)"
        ) from None
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise WeightsError(f"{folder}/model.safetensors.index.json is not an index: {error!r}") from error
    paths = [folder / name for name in names]
    for path in paths:
        if path.parent != folder or path.suffix != ".safetensors" or not path.is_file():
            raise WeightsError(f"{folder}/model.safetensors.index.json names {path.name}, which is not there")
    return paths


def sha256_of(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def one_line(error: BaseException) -> str:
    """The first line of an error's message, at most 300 characters that can be printed."""
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else type(error).__name__
    return "".join(c if c.isprintable() else "?" for c in text)[:300]

"""Weights of others, opened with care: a folder or a Hub repository of safetensors, and what exactly was in it.

Notable: of a repository only JSON, vocabularies and safetensors are ever fetched, at one commit, into the Hub's cache;
the folder is looked at before any library opens it. A library left to itself may fetch a pickle, a conversion that a
robot proposed, or the base model that an adapter names.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

FILES = (  # of a repository on the Hub, all that is ever fetched
    "config.json", "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "chat_template.jinja",
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


def read_config(folder: Path, model_types: Sequence[str] | None) -> dict[str, Any]:
    """config.json of a folder, whose model_type must be one of the given ones (None: any)."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeightsError(f"{folder}: no config.json in it, so not a model folder") from None
    except ValueError as error:
        raise WeightsError(f"{folder}/config.json is not JSON: {error}") from error
    found = config.get("model_type") if isinstance(config, dict) else None
    if not isinstance(found, str) or (model_types is not None and found not in model_types):
        wanted = " or ".join(model_types or ("a known type",))
        raise WeightsError(f"{folder} holds a model of type {found!r}, asked for is {wanted}")
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


def load_network(auto_class: str, folder: Path, **options: Any) -> Any:
    """A network of transformers, such as AutoModelForCausalLM, from a folder of safetensors, ready to be asked.

    No code of the folder runs. WeightsError where it cannot be loaded, or lacks weights: transformers would draw them
    at random and go on.
    """
    import transformers
    from safetensors import SafetensorError

    weight_files(folder)
    try:
        with quiet():
            network, report = getattr(transformers, auto_class).from_pretrained(
                folder, use_safetensors=True, local_files_only=True, trust_remote_code=False,
                output_loading_info=True, **options,
            )  # fmt: skip
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise WeightsError(f"{folder}: cannot be loaded as {auto_class}: {one_line(error)}") from error
    if lacking := sorted(report["missing_keys"]):
        raise WeightsError(f"{folder}: the file lacks {len(lacking)} of the weights, {lacking[0]} among them")
    return network.eval().requires_grad_(False)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder. WeightsError where there is none: transformers would make an empty one."""
    from transformers import AutoTokenizer

    names = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
    if not any((folder / name).is_file() for name in names):
        raise WeightsError(f"{folder}: no tokenizer in it")
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise WeightsError(f"{folder}: no tokenizer in it ({one_line(error)})") from error


def digest_of(folder: Path) -> str:
    """sha256:… over names and contents of all files of a folder that FILES names: its revision, so to speak."""
    sums = {p.name: sha256_of(p) for p in sorted(folder.iterdir()) if any(fnmatch(p.name, f) for f in FILES)}
    return f"sha256:{hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()}"


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars, and its report on heads that are not used."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def sha256_of(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def one_line(error: BaseException) -> str:
    """The first line of an error's message, at most 300 characters that can be printed."""
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else type(error).__name__
    return "".join(c if c.isprintable() else "?" for c in text)[:300]

"""Wan-layout pipeline folders: load, encode and decode, save a round, and the digests by which models are known.

Every model of this project is a diffusers `WanPipeline` folder in safetensors. A trained round differs from its base in
the transformer alone, so the other components are hard links to the base's files where the file system allows it.
`bagger.json` in the folder records where a model came from and the digests of its components.

Legend: B batch, T pixel frames, F latent frames, C latent channels, S text tokens, D text width.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanPipeline
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError, safe_open
from transformers.utils import logging as transformers_logging

from model.streaming import StreamingDecoder, latent_statistics

RECORD = "bagger.json"
COMPONENTS = ("scheduler", "text_encoder", "tokenizer", "transformer", "vae")
SUFFIXES = frozenset((".json", ".model", ".safetensors", ".txt"))  # of a component's files; all others are left alone
_VOLATILE = {"_diffusers_version", "_name_or_path", "transformers_version", "_class_name_or_path"}


class PipelineError(ValueError):
    """A model folder that cannot be used, with the reason."""


def load_pipeline(
    source: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> WanPipeline:
    """Load a Wan2.1-style pipeline from a folder or a Hub id; safetensors only, frozen, in eval mode.

    Raises PipelineError when the folder is missing, incomplete (also by a single weight) or not a Wan pipeline.
    """
    for library in (diffusers_logging, transformers_logging):
        library.disable_progress_bar()
    folder = Path(source)
    looks_local = isinstance(source, Path) or folder.exists() or str(source).startswith((".", "/", "models"))
    if looks_local and not (folder / "model_index.json").is_file():
        raise PipelineError(f"{source}: not a diffusers pipeline folder (no model_index.json in it)")
    try:
        pipe = WanPipeline.from_pretrained(str(source), dtype=dtype, use_safetensors=True)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise PipelineError(f"{source}: cannot be loaded as a WanPipeline: {error}") from error
    for name in ("vae", "text_encoder", "transformer"):
        module = getattr(pipe, name)
        if not isinstance(module, torch.nn.Module):
            raise PipelineError(f"{source}: the pipeline lacks its {name}")
        missing = [key for key, weight in module.named_parameters() if weight.is_meta]
        if name == "text_encoder":
            missing += _invented(module, folder / name)
        if missing:
            raise PipelineError(f"{source}: {name} lacks {len(missing)} of its weights, {missing[0]} among them")
        module.eval().requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def _invented(module: torch.nn.Module, folder: Path) -> list[str]:
    """Weights that the safetensors of a local folder lack: transformers draws those at random and only logs it.

    A tied weight is there under any of its names.
    """
    stored = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            stored.update(file.keys())
    names: dict[int, list[str]] = {}
    for key, weight in module.state_dict().items():
        names.setdefault(weight.data_ptr(), []).append(key)
    return [keys[0] for keys in names.values() if stored and not stored.intersection(keys)]


def num_frames(vae: AutoencoderKLWan, num_latents: int) -> int:
    """Pixel frames of `num_latents` latent frames: 1 + r (F - 1), r the VAE's compression in time."""
    return 1 + int(vae.config.scale_factor_temporal) * (num_latents - 1)


def num_latents(vae: AutoencoderKLWan, num_frames: int) -> int:
    """Latent frames of `num_frames` pixel frames. Raises ValueError unless T = 1 + r k."""
    ratio = int(vae.config.scale_factor_temporal)
    if num_frames < 1 or (num_frames - 1) % ratio:
        raise ValueError(f"{num_frames} frames do not fit a VAE that takes 1 + {ratio} k frames")
    return 1 + (num_frames - 1) // ratio


@torch.no_grad()
def encode_frames(vae: AutoencoderKLWan, frames_BTHWC: np.ndarray) -> torch.Tensor:
    """Frames uint8 [B,T,H,W,3] to latents [B,C,F,h,w], the posterior's mode, normalised as WanPipeline does."""
    wanted = num_latents(vae, frames_BTHWC.shape[1])
    weight = next(vae.parameters())
    pixels = torch.from_numpy(np.ascontiguousarray(frames_BTHWC)).to(weight.device).permute(0, 4, 1, 2, 3)
    # diffusers encodes 1 + 4k frames and silently drops the rest, whatever the VAE's compression in time. Being causal,
    # the VAE does not let frames added at the end change what comes before them.
    extra = -(pixels.shape[2] - 1) % 4
    pixels = torch.cat([pixels, pixels[:, :, -1:].expand(-1, -1, extra, -1, -1)], 2)
    latents = vae.encode(pixels.to(weight.dtype) / 127.5 - 1.0).latent_dist.mode()[:, :, :wanted]
    mean, std = latent_statistics(vae, latents)
    return (latents - mean) / std


def decode_latents(vae: AutoencoderKLWan, latents_BCFHW: torch.Tensor) -> np.ndarray:
    """Latents [B,C,F,h,w] of whole clips to frames uint8 [B,T,H,W,3]."""
    return StreamingDecoder(vae).decode(latents_BCFHW)


@torch.no_grad()
def encode_prompts(pipe: WanPipeline, prompts: Sequence[str], max_length: int, batch_size: int = 64) -> torch.Tensor:
    """Prompt embeddings [B, max_length, D], zero after each prompt's end, exactly as WanPipeline computes them."""
    parts = [
        pipe.encode_prompt(list(prompts[i : i + batch_size]), do_classifier_free_guidance=False,
                           max_sequence_length=max_length)[0]
        for i in range(0, len(prompts), batch_size)
    ]  # fmt: skip
    return torch.cat(parts)


# ---------------------------------------------------------------- folders and digests


def component_digest(folder: Path) -> str:
    """sha256 of a component's files: bytes of weights and vocabularies, JSON without library versions.

    Raises PipelineError for a .json file that is none.
    """
    total = hashlib.sha256()
    for path in _component_files(folder):
        if path.suffix == ".json":
            data = _read_json(path, "")
            if isinstance(data, dict):
                data = {k: v for k, v in data.items() if k not in _VOLATILE}
            content = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
        else:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    return total.hexdigest()


def _component_files(folder: Path) -> list[Path]:
    """What belongs to a component: weights, settings and vocabularies, nothing hidden, no pickle. Sorted."""
    inside = ((path, path.relative_to(folder).parts) for path in folder.rglob("*"))
    return sorted(
        path
        for path, parts in inside
        if path.suffix in SUFFIXES and path.is_file() and not any(part.startswith(".") for part in parts)
    )


def _read_json(path: Path, mend: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise PipelineError(f"{path}: not JSON: {error}{mend}") from error


def describe_folder(folder: Path, components: dict[str, str] | None = None) -> dict[str, Any]:
    """Digests of a pipeline folder: `components` and the `model` digest that follows from them.

    Components already known (those a round shares with its base) are not read again.
    """
    known = components or {}
    present = [name for name in COMPONENTS if (folder / name).is_dir()]
    digests = {name: known.get(name) or component_digest(folder / name) for name in present}
    text = "".join(f"{name} {digest}\n" for name, digest in sorted(digests.items()))
    return {"model": f"model-{hashlib.sha256(text.encode()).hexdigest()[:16]}", "components": digests}


def read_record(folder: str | Path) -> dict[str, Any]:
    """The `bagger.json` of a model folder. Raises PipelineError when there is none or it lacks the digests."""
    path = Path(folder) / RECORD
    if not path.is_file():
        raise PipelineError(f"{folder}: no {RECORD}; is it a model of this project? run `dvc repro` or `dvc pull`")
    mend = f"; get it back with `dvc checkout --force {folder}`, or make it again with `dvc repro`"
    match _read_json(path, mend):
        case {"digests": {"model": str(), "components": dict()}} as record:
            return dict(record)
    raise PipelineError(f"{path}: lacks the digests of the model and its components{mend}")


def model_digest(folder: str | Path) -> str:
    """The digest by which a model of this project is known, `model-…`."""
    return str(read_record(folder)["digests"]["model"])


def save_base(pipe: WanPipeline, folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Write a whole pipeline as a new folder, with its record; appears whole or not at all."""
    with _building(folder) as building:
        pipe.save_pretrained(building, safe_serialization=True)
        return _finish(building, folder, record, {})


def adopt_folder(source: Path, folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Copy an existing pipeline folder (hard links where possible) and write its record.

    Only model_index.json and the components' files are taken. Raises PipelineError for a link out of the folder, unless
    it is a snapshot of the Hugging Face cache and the link leads to the blobs of the same repository.
    """
    _check_links(source)
    with _building(folder) as building:
        _link_tree(source, building)
        return _finish(building, folder, record, {})


def save_round(base_folder: Path, transformer: torch.nn.Module, folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Write a trained round: the base's components and this transformer. Returns the record written."""
    known = dict(read_record(base_folder)["digests"]["components"])
    known.pop("transformer", None)
    with _building(folder) as building:
        _link_tree(base_folder, building, leave=("transformer",))
        transformer.save_pretrained(building / "transformer", safe_serialization=True)
        return _finish(building, folder, record, known)


@contextmanager
def _building(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder`, gone again when what fills it fails."""
    building = folder.with_name(f".{folder.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    try:
        yield building
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise


def _finish(building: Path, folder: Path, record: dict[str, Any], known: dict[str, str]) -> dict[str, Any]:
    record = {**record, "digests": describe_folder(building, known)}
    (building / RECORD).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(building, folder)
    return record


def _pipeline_files(folder: Path, leave: tuple[str, ...] = ()) -> list[Path]:
    components = [name for name in COMPONENTS if name not in leave]
    return [folder / "model_index.json", *(path for name in components for path in _component_files(folder / name))]


def _check_links(source: Path) -> None:
    """Refuse files of others: who hands over a pipeline folder is not to have /etc or a home directory copied."""
    root = source.resolve()
    allowed = [root, root.parents[1] / "blobs"] if root.parent.name == "snapshots" else [root]
    for path in _pipeline_files(source):
        real = path.resolve()
        if not any(real.is_relative_to(one) for one in allowed):
            raise PipelineError(f"{path}: is a link out of {source}, to {real}; copy the file itself there")


def _link_tree(source: Path, target: Path, leave: tuple[str, ...] = ()) -> None:
    for path in _pipeline_files(source, leave):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path.resolve(), copy)
        except OSError:
            shutil.copyfile(path, copy)

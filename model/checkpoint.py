"""Checkpoints of a training run: a folder per step with `tensors.safetensors` and `state.json`, no pickle.

A checkpoint appears under its name whole or not at all: it is written under a temporary name, synced and renamed. More
than one is kept, so a damaged newest one costs some steps, not the run.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file


@dataclass(frozen=True)
class Checkpoint:
    """What was saved after `step` finished steps: tensors by name and a JSON-able record."""

    step: int
    tensors: dict[str, torch.Tensor]
    record: dict[str, Any]


def save(folder: Path, checkpoint: Checkpoint, keep: int = 2) -> Path:
    """Write a checkpoint under `folder`, then delete all but the newest `keep`. Returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary, final = folder / f".writing-{checkpoint.step:08d}", folder / f"step-{checkpoint.step:08d}"
    for half_written in folder.glob(".writing-*"):
        shutil.rmtree(half_written)
    temporary.mkdir()
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    save_file(tensors, temporary / "tensors.safetensors")
    (temporary / "state.json").write_text(json.dumps({"step": checkpoint.step, **checkpoint.record}, allow_nan=False))
    for path in temporary.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    if final.exists():  # only a damaged one: `latest` would have resumed from a good one
        shutil.rmtree(final)
    os.replace(temporary, final)
    for old in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(old)
    return final


def latest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint under `folder` that can be read, or None. Half-written and damaged ones are passed over."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        try:
            return load(path)
        except (OSError, ValueError, KeyError, SafetensorError):
            continue
    return None


def load(path: Path) -> Checkpoint:
    """The checkpoint in a folder `step-…`; OSError, ValueError, KeyError or SafetensorError for a damaged one."""
    record = json.loads((path / "state.json").read_text())
    return Checkpoint(record.pop("step"), load_file(path / "tensors.safetensors"), record)

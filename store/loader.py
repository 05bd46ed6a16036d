"""Training batches from a mixture plan: what a position of the plan holds is a pure function of the plan alone.

Notable:
- There is no state to checkpoint, so resuming at any position is exact, for any number of processes and workers.
- All of a plan is checked before the first batch: that the tables are those it was made from, that they hold its
  clips, that their latents are of one VAE and one shape. Prompts are read then too; a batch reads latents alone.
- Latents come from the file into the batch's array at once (store/values.py). They stay float16, as stored: numpy
  needs five times as long as torch to make them float32.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from store.errors import StoreError, few
from store.manifest import read_manifest
from store.mixture import plan_stage, plan_tables, read_plan
from store.table import open_table, read_table, row_offsets
from store.values import Values


class PlanLoader:
    """The clips of a plan by position, from the sealed tables of a store; `len` is the plan's number of samples.

    A map-style data set: `loader[position]`, and `loader.batch(positions)`, which torch's loaders know as
    `__getitems__`. May be pickled to other processes.

    Attributes: plan_digest (64 hex), vae_digest (the VAE of every latent of the plan), num_clips (distinct clips),
    shape ([C,F,h,w] of every clip), texts (clip_ids, kinds, rounds and prompts, a list each by position).
    Raises StoreError if the plan was made from other tables or names clips that the store lacks, or if their latents
    are of different VAEs or shapes.
    """

    def __init__(self, store_dir: Path, plan_path: Path):
        self.store_dir, self.plan_path = Path(store_dir), Path(plan_path)
        self.plan, self.plan_digest = read_plan(plan_path)
        self._check_tables()
        names = np.array(self.plan["table"].to_pylist(), object)
        ids = np.array(self.plan["clip_id"].to_pylist(), object)
        self._values: list[Values] = []
        self._videos: list[Values] = []
        self._table = np.empty(len(ids), np.int32)  # by position: which of _values,
        self._offset = np.empty(len(ids), np.int64)  # and which row there
        prompts = np.empty(len(ids), object)
        vaes: dict[str, str] = {}
        shapes: dict[tuple[int, ...], str] = {}
        self.num_clips = 0
        for number, table in enumerate(sorted(set(names))):
            here = names == table
            clips, which = np.unique(ids[here], return_inverse=True)
            dataset = open_table(self.store_dir, table)
            offsets = row_offsets(dataset, table)
            if absent := [one for one in clips if one not in offsets]:
                raise StoreError(
                    f"plan {self.plan_path} needs {len(absent)} clips that table {table} in {self.store_dir} lacks: "
                    f"{few(absent)}; {self._mend()}"
                )
            rows = read_table(dataset, table, ["prompt", "latents_shape", "vae_digest"], ids=list(clips))
            for vae in rows["vae_digest"].unique().to_pylist():
                vaes.setdefault(vae, table)
            for clip, shape in zip(clips, rows["latents_shape"].to_pylist(), strict=True):
                shapes.setdefault(tuple(shape), clip)
            self._values.append(Values(dataset, "latents"))
            self._videos.append(Values(dataset, "video"))
            self._table[here] = number
            self._offset[here] = np.array([offsets[one] for one in clips])[which]
            prompts[here] = np.array(rows["prompt"].to_pylist(), object)[which]
            self.num_clips += len(clips)
        # Lists: an Arrow table takes as long to find a batch's texts as the file its latents.
        self.texts: dict[str, list[str]] = {
            "clip_ids": ids.tolist(),
            "kinds": list(map(sys.intern, self.plan["kind"].to_pylist())),
            "rounds": list(map(sys.intern, self.plan["round"].to_pylist())),
            "prompts": prompts.tolist(),
        }
        if len(vaes) != 1:
            found = ", ".join(f"{vae} in {table}" for vae, table in vaes.items())
            raise StoreError(f"plan {self.plan_path} mixes latents of {len(vaes)} VAEs: {found}; run `dvc repro`")
        if len(shapes) != 1:
            found = ", ".join(f"{list(shape)} of {clip}" for shape, clip in shapes.items())
            raise StoreError(f"plan {self.plan_path}: latents are {found}; clips of one plan must have one shape")
        (self.vae_digest,), (self.shape,) = vaes, shapes

    def __len__(self) -> int:
        return self.plan.num_rows

    def batch(self, positions: Sequence[int], out: np.ndarray | None = None) -> dict[str, Any]:
        """The clips at these positions of the plan, in their order.

        positions, clip_ids, kinds ('seed' or 'corrective'), rounds and prompts: lists of B; latents: float16
        [B,C,F,h,w], normalised, in `out` if it is given: memory used again is several times as fast as fresh.
        Raises StoreError for positions beyond the plan's end, for none, and for damage.
        """
        positions = self._checked(positions)
        latents = np.empty((len(positions), *self.shape), "<f2") if out is None else out
        tables, offsets = self._table[positions], self._offset[positions]
        for number in np.unique(tables):
            here = np.flatnonzero(tables == number)
            self._values[number].read_into(latents, here.tolist(), offsets[here].tolist())
        texts = {name: [column[one] for one in positions] for name, column in self.texts.items()}
        return {"positions": positions, **texts, "latents": latents}

    __getitems__ = batch

    def videos(self, positions: Sequence[int]) -> list[bytes]:
        """The mp4 files at these positions of the plan, in their order. Raises StoreError as `batch`."""
        positions = self._checked(positions)
        found: list[bytes] = [b""] * len(positions)
        tables, offsets = self._table[positions], self._offset[positions]
        for number in np.unique(tables):
            here = np.flatnonzero(tables == number).tolist()
            for place, video in zip(here, self._videos[number].read(offsets[here].tolist()), strict=True):
                found[place] = video
        return found

    def __getitem__(self, position: int) -> dict[str, Any]:
        """position, clip_id, kind, round, prompt, and latents [C,F,h,w] of one position."""
        found = self.batch([position])
        return {name.removesuffix("s") if name != "latents" else name: values[0] for name, values in found.items()}

    def _checked(self, positions: Sequence[int]) -> list[int]:
        positions = [int(one) for one in positions]
        if not positions or min(positions) < 0 or max(positions) >= len(self):
            asked = f"{min(positions)} to {max(positions)}" if positions else "none"
            raise StoreError(f"plan {self.plan_path} has {len(self)} samples; positions asked for: {asked}")
        return positions

    def _check_tables(self) -> None:
        """Whether the tables are still those that the plan was made from; older plans do not tell."""
        for table, planned in sorted(plan_tables(self.plan_path).items()):
            present = read_manifest(self.store_dir.parent / "manifests" / f"{table}.json").digest
            if present != planned:
                raise StoreError(
                    f"plan {self.plan_path} was made from table {table} of digest {planned}, the store's is {present}; "
                    f"{self._mend()}"
                )

    def _mend(self) -> str:
        return f"run `dvc repro {plan_stage(self.plan_path)}`"

"""Training batches from a mixture plan: what step k sees is a pure function of (plan, k).

Notable: there is no state to checkpoint, so resuming at any step is exact. Latents are read in one go per table and
batch; handles are opened when first used and left behind when the loader is pickled to another process.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa

from store.errors import StoreError, few
from store.latents import unpack_latents
from store.mixture import read_plan
from store.table import open_table, read_table, row_offsets

_COLUMNS = ["prompt", "latents", "latents_shape"]


class PlanLoader:
    """Reads the clips of a plan from the sealed tables of a store; `len` is the plan's number of samples.

    Attributes: plan_digest (64 hex), vae_digest (the VAE of every latent of the plan), num_clips (distinct clips).
    Raises StoreError if the plan names clips that the store lacks, or if their latents are of different VAEs.
    """

    def __init__(self, store_dir: Path, plan_path: Path):
        self.store_dir, self.plan_path = Path(store_dir), Path(plan_path)
        self.plan, self.plan_digest = read_plan(plan_path)
        self._ids: list[str] = self.plan["clip_id"].to_pylist()
        self._kinds: list[str] = self.plan["kind"].to_pylist()
        self._tables: list[str] = self.plan["table"].to_pylist()
        self._offsets: dict[str, dict[str, int]] = {}
        self._datasets: dict[str, lance.LanceDataset] = {}

        wanted: dict[str, set[str]] = {}
        for clip_id, table in zip(self._ids, self._tables, strict=True):
            wanted.setdefault(table, set()).add(clip_id)
        self.num_clips = sum(len(ids) for ids in wanted.values())
        vaes: dict[str, str] = {}
        for table, ids in sorted(wanted.items()):
            self._offsets[table] = row_offsets(open_table(self.store_dir, table), table)
            if absent := sorted(ids - self._offsets[table].keys()):
                raise StoreError(
                    f"plan {self.plan_path} needs {len(absent)} clips that table {table} in {self.store_dir} lacks: "
                    f"{few(absent)}; run `dvc repro mix@{self.plan_path.stem}`"
                )
            used = read_table(self.store_dir, table, ["vae_digest"], ids=sorted(ids))["vae_digest"]
            vaes.update(dict.fromkeys(used.unique().to_pylist(), table))
        if len(vaes) != 1:
            found = ", ".join(f"{vae} in {table}" for vae, table in vaes.items())
            raise StoreError(f"plan {self.plan_path} mixes latents of {len(vaes)} VAEs: {found}; run `dvc repro`")
        (self.vae_digest,) = vaes

    def __len__(self) -> int:
        return len(self._ids)

    def batch(self, step: int, batch_size: int) -> dict[str, Any]:
        """Positions step*batch_size … of the plan.

        clip_ids, kinds ('seed' or 'corrective') and prompts: lists of B; latents: float32 [B,C,F,h,w], normalised.
        Raises StoreError beyond the plan's end, and if the clips' latents have different shapes.
        """
        start, stop = step * batch_size, (step + 1) * batch_size
        if step < 0 or batch_size < 1 or stop > len(self):
            raise StoreError(
                f"plan {self.plan_path} has {len(self)} samples; step {step} of batches of {batch_size} is not in it"
            )
        ids, tables = self._ids[start:stop], self._tables[start:stop]
        found: dict[str, tuple[str, np.ndarray]] = {}
        for table in sorted(set(tables)):
            here = sorted({one for one, its in zip(ids, tables, strict=True) if its == table})
            rows = self._take(table, here)
            for one, prompt, data, shape in zip(here, *(rows[column].to_pylist() for column in _COLUMNS), strict=True):
                found[one] = (prompt, unpack_latents(data, shape))
        first = found[ids[0]][1].shape
        for one in ids:
            if found[one][1].shape != first:
                raise StoreError(
                    f"step {step}: latents of {ids[0]} are {list(first)}, of {one} {list(found[one][1].shape)}; "
                    "clips of one plan must have one shape"
                )
        return {
            "clip_ids": ids,
            "kinds": self._kinds[start:stop],
            "prompts": [found[one][0] for one in ids],
            "latents": np.stack([found[one][1] for one in ids]).astype(np.float32),
        }

    def _take(self, table: str, ids: Sequence[str]) -> pa.Table:
        if table not in self._datasets:
            self._datasets[table] = open_table(self.store_dir, table)
        return self._datasets[table].take([self._offsets[table][one] for one in ids], columns=_COLUMNS)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_datasets": {}}

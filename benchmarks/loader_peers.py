"""The same clips in several libraries' own form, each read by its own documented means.

Clips are random: latents float16 of a size's shape, a prompt, 4,000 bytes in place of an mp4; two sources of them. All
hand the same to the trainer: `latents`, prompts and a float32 batch [B,C,F,h,w], or `bytes`, prompts and videos. Peers
copy latents into one float16 batch where they read, as ours does, and make it float32 in the trainer's process.
WebDataset and MosaicML streaming keep a clip's columns together, so they read the 4,000 bytes too.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

SOURCES = ("seed", "clips_r1")
SIZES = {"toy": ((8, 14, 8, 8), 8192, 16), "1 MB": ((16, 21, 30, 52), 256, 8)}  # shape, clips a source, batch
VIDEO = 4_000
BUFFER = 1_000  # clips in the shuffle buffers of those that stream


def clips(size: str, source: str) -> Iterator[dict[str, Any]]:
    """The clips of a source, the same at every call."""
    shape, count, _ = SIZES[size]
    draw = np.random.default_rng([SOURCES.index(source), count])
    for number in range(count):
        latents = draw.standard_normal(shape, dtype=np.float32).astype("<f2").tobytes()
        yield {
            "clip_id": f"{source}-{number:06d}", "prompt": f"a red circle moves left, number {number} of {source}",
            "latents": latents, "video": draw.bytes(VIDEO),
        }  # fmt: skip


class Library:
    """The clips of a size in a folder; `batches` yields (clip ids, prompts, float32 latents or list of videos)."""

    def __init__(self, folder: Path, size: str):
        self.folder, self.size = folder, size
        self.shape, self.count, self.batch = SIZES[size]

    def build(self) -> None:
        raise NotImplementedError

    def batches(self, task: str, mixed: bool, workers: int) -> Iterator[tuple[list[str], list[str], Any]]:
        raise NotImplementedError

    def collate(self, samples: Any) -> dict[str, Any]:
        """Dicts of clip_id, prompt, and latents or video."""
        found = {"ids": [one["clip_id"] for one in samples], "prompts": [one["prompt"] for one in samples]}
        if "video" in samples[0] and "latents" not in samples[0]:
            return {**found, "video": [one["video"] for one in samples]}
        latents = np.empty((len(samples), *self.shape), "<f2")
        for place, one in zip(latents, samples, strict=True):
            place[:] = np.frombuffer(one["latents"], "<f2").reshape(self.shape)
        return {**found, "latents": torch.from_numpy(latents)}

    def _given(self, loader: Any) -> Iterator[tuple[list[str], list[str], Any]]:
        for one in loader:
            yield one["ids"], one["prompts"], one["latents"].float() if "latents" in one else one["video"]


class Ours(Library):
    """Sealed Lance tables and a plan, read by `flows.feed`; videos by `PlanLoader.videos` in torch's loader."""

    def build(self) -> None:
        import pyarrow as pa

        from store.dataset import write_fresh
        from store.mixture import Pool, expand, write_plan
        from store.schema import table_schema
        from tests.conftest import clip_rows, seed_rows

        for source, base in zip(SOURCES, (seed_rows()[0], clip_rows("r1", "m")[0]), strict=True):
            schema, _ = table_schema(source)
            rows = ({**base, **clip, "latents_shape": list(self.shape)} for clip in clips(self.size, source))
            parts = iter(lambda rows=rows: list(itertools.islice(rows, 64)), [])
            batches = (batch for part in parts for batch in pa.Table.from_pylist(part, schema=schema).to_batches())
            write_fresh(batches, schema, self.folder / f"{source}.lance")
        pools = [
            Pool("seed", "r0", "seed", [f"seed-{n:06d}" for n in range(self.count)]),
            Pool("corrective", "r1", "clips_r1", [f"clips_r1-{n:06d}" for n in range(self.count)]),
        ]
        for share in (0.0, 0.5):
            write_plan(expand(pools, share, self.count, seed=0), self.folder / f"{share}.parquet")

    def batches(self, task: str, mixed: bool, workers: int, start: int = 0) -> Iterator[Any]:
        from store.loader import PlanLoader

        loader = PlanLoader(self.folder, self.folder / f"{0.5 if mixed else 0.0}.parquet")
        if task == "latents":
            from flows.feed import feed

            for fed in feed(loader, start, len(loader) // self.batch, self.batch, workers=workers):
                yield fed.clip_ids, fed.prompts, fed.latents_BCFhw
            return
        positions = [range(first, first + self.batch) for first in range(0, len(loader), self.batch)]
        yield from self._given(
            DataLoader(
                Videos(loader), batch_sampler=positions, collate_fn=_as_it_is, num_workers=workers,
                multiprocessing_context="spawn" if workers else None,
            )
        )  # fmt: skip


class Videos:
    """Videos and prompts of positions."""

    def __init__(self, loader: Any):
        self.loader = loader

    def __getitems__(self, positions: range) -> dict[str, Any]:
        texts = self.loader.texts
        found = {"ids": texts["clip_ids"], "prompts": texts["prompts"]}
        return {key: [column[one] for one in positions] for key, column in found.items()} | {
            "video": self.loader.videos(positions)
        }


def _as_it_is(batch: Any) -> Any:
    return batch


class WebDataset(Library):
    """Tar shards; shards in random order and a shuffle buffer; mixed by RandomMix."""

    def build(self) -> None:
        import webdataset

        for source in SOURCES:
            (self.folder / source).mkdir()
            pattern = str(self.folder / source / "%05d.tar")
            with webdataset.ShardWriter(pattern, maxcount=max(1, self.count // 16), verbose=0) as writer:
                for one in clips(self.size, source):
                    writer.write(
                        {"__key__": one["clip_id"], "prompt.txt": one["prompt"].encode(), "latents.bin": one["latents"],
                         "video.mp4": one["video"]}
                    )  # fmt: skip

    def batches(self, task: str, mixed: bool, workers: int) -> Iterator[Any]:
        import webdataset

        def source(name: str) -> Any:
            shards = sorted(str(one) for one in (self.folder / name).glob("*.tar"))
            shuffled = webdataset.WebDataset(shards, shardshuffle=len(shards), seed=0, empty_check=False)
            return shuffled.shuffle(min(BUFFER, self.count // 4), seed=0).map(named)

        name, key = ("latents", "latents.bin") if task == "latents" else ("video", "video.mp4")

        def named(sample: dict[str, Any]) -> dict[str, Any]:
            return {"clip_id": sample["__key__"], "prompt": sample["prompt.txt"].decode(), name: sample[key]}

        if mixed:
            chain = webdataset.DataPipeline(webdataset.RandomMix([source(one) for one in SOURCES], [0.5, 0.5]))
        else:
            chain = source("seed")
        batched = webdataset.batched(self.batch, collation_fn=self.collate, partial=False)
        pipeline = chain.compose(batched)
        yield from self._given(webdataset.WebLoader(pipeline, batch_size=None, num_workers=workers))


class Datasets(Library):
    """`datasets`, Arrow files mapped into memory; shuffle, and interleave_datasets with probabilities."""

    form: str | None = None

    def build(self) -> None:
        import datasets

        for source in SOURCES:
            rows = datasets.Features(
                clip_id=datasets.Value("string"), prompt=datasets.Value("string"),
                latents=datasets.Value("large_binary"), video=datasets.Value("large_binary"),
            )  # fmt: skip
            table = datasets.Dataset.from_list(list(clips(self.size, source)), features=rows)
            table.save_to_disk(self.folder / source)

    def data(self, task: str, mixed: bool) -> Any:
        import datasets

        datasets.disable_progress_bars()
        columns = ["clip_id", "prompt", "latents" if task == "latents" else "video"]
        parts = [datasets.load_from_disk(self.folder / one).select_columns(columns).shuffle(seed=0) for one in SOURCES]
        if mixed:
            both = datasets.interleave_datasets(parts, [0.5, 0.5], seed=0, stopping_strategy="all_exhausted")
            return both.with_format(self.form)
        return parts[0].with_format(self.form)

    def batches(self, task: str, mixed: bool, workers: int, start: int = 0) -> Iterator[Any]:
        data = self.data(task, mixed).skip(start * self.batch)
        loader = DataLoader(data, self.batch, collate_fn=self.collate, num_workers=workers, drop_last=True)
        yield from self._given(loader)


class DatasetsArrow(Datasets):
    """The same files, the fast way for one who knows Arrow: format "arrow", and buffers straight into the batch."""

    form = "arrow"

    def collate(self, samples: Any) -> dict[str, Any]:
        found = {"ids": samples["clip_id"].to_pylist(), "prompts": samples["prompt"].to_pylist()}
        if "latents" not in samples.column_names:
            return {**found, "video": samples["video"].to_pylist()}
        latents = np.empty((samples.num_rows, *self.shape), "<f2")
        for place, value in zip(latents, samples["latents"], strict=True):
            place[:] = np.frombuffer(value.as_buffer(), "<f2").reshape(self.shape)
        return {**found, "latents": torch.from_numpy(latents)}

    def batches(self, task: str, mixed: bool, workers: int, start: int = 0) -> Iterator[Any]:
        data = Gathered(self.data(task, mixed).skip(start * self.batch))
        loader = DataLoader(data, self.batch, collate_fn=self.collate, num_workers=workers, drop_last=True)
        yield from self._given(loader)


class Gathered:
    """A dataset in format "arrow" whose `__getitems__` gives a batch as one table, not as rows."""

    def __init__(self, data: Any):
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitems__(self, rows: list[int]) -> Any:
        return self.data[rows]


class Streaming(Library):
    """MosaicML streaming: MDS shards, its own shuffle; mixed by Stream(proportion=…)."""

    def build(self) -> None:
        from streaming import MDSWriter

        columns = {"clip_id": "str", "prompt": "str", "latents": "bytes", "video": "bytes"}
        for source in SOURCES:
            with MDSWriter(out=str(self.folder / source), columns=columns) as writer:
                for one in clips(self.size, source):
                    writer.write(one)

    def loader(self, task: str, mixed: bool, workers: int) -> Any:
        import streaming
        from streaming.base.util import clean_stale_shared_memory

        clean_stale_shared_memory()
        if mixed:
            parts = [streaming.Stream(local=str(self.folder / one), proportion=0.5) for one in SOURCES]
            how = {"streams": parts, "epoch_size": self.count}
        else:
            how = {"local": str(self.folder / "seed")}
        data = streaming.StreamingDataset(**how, batch_size=self.batch, shuffle=True, shuffle_seed=0)

        def collate(samples: Any) -> dict[str, Any]:
            unwanted = "video" if task == "latents" else "latents"
            return self.collate([{k: v for k, v in one.items() if k != unwanted} for one in samples])

        return streaming.StreamingDataLoader(
            data, batch_size=self.batch, collate_fn=collate, num_workers=workers, drop_last=True
        )

    def batches(self, task: str, mixed: bool, workers: int) -> Iterator[Any]:
        yield from self._given(self.loader(task, mixed, workers))


LIBRARIES: dict[str, type[Library]] = {
    "ours": Ours,
    "WebDataset": WebDataset,
    "datasets": Datasets,
    "datasets, format arrow": DatasetsArrow,
    "MosaicML streaming": Streaming,
}
NEEDS = {"WebDataset": "webdataset", "MosaicML streaming": "streaming"}  # what is no dependency of this project

import pickle

import numpy as np
import pytest

from store.loader import PlanLoader
from store.mixture import Pool, expand, read_plan, write_plan
from store.table import StoreError


def value(clip_id: str) -> int:
    """What the tiny store fills a clip's latents with."""
    kind, *numbers = clip_id.split("-")
    return int(numbers[0]) if kind == "seed" else int(numbers[0][1:]) * 100 + int(numbers[1])


def test_batches_follow_the_plan(tiny):
    path = tiny.root / "plans" / "r2.parquet"
    loader, (plan, found) = PlanLoader(tiny.store, path), read_plan(path)
    assert (len(loader), loader.plan_digest, loader.vae_digest) == (12, found, "vae-0")
    batches = [loader.batch(step, 4) for step in range(3)]
    ids = [one for batch in batches for one in batch["clip_ids"]]
    assert ids == plan["clip_id"].to_pylist()
    assert [one for batch in batches for one in batch["kinds"]] == plan["kind"].to_pylist()
    for batch in batches:
        assert batch["latents"].shape == (4, 2, 3, 2, 2)
        assert batch["latents"].dtype == np.float32
        assert batch["latents"][:, 0, 0, 0, 0].tolist() == [value(one) for one in batch["clip_ids"]]
        for one, prompt in zip(batch["clip_ids"], batch["prompts"], strict=True):
            way = "left" if one.startswith("seed") else "right"
            assert prompt == f"a red disc moves {way}, it's number {one[-1]}"


def test_a_step_does_not_depend_on_what_was_read_before(tiny):
    path = tiny.root / "plans" / "r1.parquet"
    used = PlanLoader(tiny.store, path)
    used.batch(0, 4), used.batch(2, 4)
    for loader in (used, pickle.loads(pickle.dumps(used))):
        again, fresh = loader.batch(1, 4), PlanLoader(tiny.store, path).batch(1, 4)
        assert np.array_equal(again.pop("latents"), fresh.pop("latents"))
        assert again == fresh


def test_a_clip_twice_in_one_batch(tiny, tmp_path):
    write_plan(expand([Pool("seed", "r0", "seed", ["seed-2"])], 0.0, 4, seed=0), tmp_path / "p.parquet")
    assert PlanLoader(tiny.store, tmp_path / "p.parquet").batch(0, 4)["clip_ids"] == ["seed-2"] * 4


def test_beyond_the_plan_is_refused(tiny):
    loader = PlanLoader(tiny.store, tiny.root / "plans" / "r1.parquet")
    for step, size in ((3, 4), (-1, 4), (0, 13), (0, 0)):
        with pytest.raises(StoreError, match="12 samples"):
            loader.batch(step, size)


def test_clips_that_the_store_lacks_are_refused(tiny, tmp_path):
    pools = [Pool("seed", "r0", "seed", ["seed-0", "seed-x", "seed-y"])]
    write_plan(expand(pools, 0.0, 3, seed=0), tmp_path / "r1.parquet")
    with pytest.raises(StoreError, match=r"needs 2 clips that table seed .* lacks: seed-x, seed-y; run `dvc repro mix"):
        PlanLoader(tiny.store, tmp_path / "r1.parquet")
    pools = [Pool("corrective", "r7", "clips_r7", ["clip-r7-0"])]
    write_plan(expand(pools, 1.0, 3, seed=0), tmp_path / "r7.parquet")
    with pytest.raises(StoreError, match="dvc repro correct@r7"):
        PlanLoader(tiny.store, tmp_path / "r7.parquet")


def test_latents_that_do_not_go_together_are_refused(tiny, rows, tmp_path):
    seeds = rows.seed()
    seeds[1]["latents"], seeds[1]["latents_shape"] = seeds[1]["latents"][: 2 * 2 * 2 * 2 * 2], [2, 2, 2, 2]
    seeds[2]["vae_digest"] = "vae-1"
    rows.seal(tmp_path, "seed", seeds)
    for clip, message in (("seed-1", r"latents of seed-. are \[2, ., 2, 2\]"), ("seed-2", "latents of 2 VAEs")):
        write_plan(expand([Pool("seed", "r0", "seed", ["seed-0", clip])], 0.0, 2, seed=0), tmp_path / "p.parquet")
        with pytest.raises(StoreError, match=message):
            PlanLoader(tmp_path / "store", tmp_path / "p.parquet").batch(0, 2)

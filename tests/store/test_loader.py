import pickle
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from store.latents import pack_latents
from store.loader import PlanLoader
from store.mixture import Pool, expand, read_plan, write_plan
from store.table import StoreError, read_manifest, read_table


def value(clip_id: str) -> int:
    """What the tiny store fills a clip's latents with."""
    kind, *numbers = clip_id.split("-")
    return int(numbers[0]) if kind == "seed" else int(numbers[0][1:]) * 100 + int(numbers[1])


@pytest.fixture(scope="module")
def wide(rows, tmp_path_factory):
    """A store whose latents are large enough to stand plainly in the file, and the path of a mixed plan of 24."""
    root = tmp_path_factory.mktemp("wide")
    draw = np.random.default_rng(0)
    for name, base, kind in (("seed", rows.seed()[0], "seed"), ("clips_r1", rows.clips("r1", "m")[0], "clip-r1")):
        made = []
        for number in range(10):
            data, shape = pack_latents(draw.standard_normal((4, 3, 8, 8)))
            one = {"clip_id": f"{kind}-{number}", "prompt": f"{name} {number}", "latents": data, "latents_shape": shape}
            made.append({**base, **one, "video": draw.bytes(3000 + 100 * number)})
        rows.seal(root, name, made)
    pools = [
        Pool("seed", "r0", "seed", [f"seed-{n}" for n in range(10)]),
        Pool("corrective", "r1", "clips_r1", [f"clip-r1-{n}" for n in range(10)]),
    ]
    digests = {one: read_manifest(root / "manifests" / f"{one}.json").digest for one in ("seed", "clips_r1")}
    write_plan(expand(pools, 0.5, 24, seed=0), root / "plans" / "r1.parquet", digests)
    return SimpleNamespace(root=root, store=root / "store", plan=root / "plans" / "r1.parquet")


def test_batches_follow_the_plan(tiny):
    path = tiny.root / "plans" / "r2.parquet"
    loader, (plan, found) = PlanLoader(tiny.store, path), read_plan(path)
    assert (len(loader), loader.plan_digest, loader.vae_digest, loader.shape) == (12, found, "vae-0", (2, 3, 2, 2))
    assert loader.num_clips == len(set(plan["clip_id"].to_pylist()))
    batches = [loader.batch(range(start, start + 4)) for start in (0, 4, 8)]
    for name, column in (("clip_ids", "clip_id"), ("kinds", "kind"), ("rounds", "round"), ("positions", "position")):
        assert [one for batch in batches for one in batch[name]] == plan[column].to_pylist()
    for batch in batches:
        assert batch["latents"].shape == (4, 2, 3, 2, 2)
        assert batch["latents"].dtype == np.float16
        assert batch["latents"][:, 0, 0, 0, 0].tolist() == [value(one) for one in batch["clip_ids"]]
        for one, prompt in zip(batch["clip_ids"], batch["prompts"], strict=True):
            way = "left" if one.startswith("seed") else "right"
            assert prompt == f"a red disc moves {way}, it's number {one[-1]}"


@pytest.mark.parametrize("name", ["tiny", "wide"])
def test_latents_are_the_bytes_of_the_table_however_they_are_read(name, request):
    made = request.getfixturevalue(name)
    loader = PlanLoader(made.store, made.root / "plans" / "r1.parquet")
    assert {one.direct for one in (*loader._values, *loader._videos)} == {name == "wide"}
    copy = pickle.loads(pickle.dumps(loader))
    positions = [7, 0, 11, 7, 3, 1]
    for some in (loader, copy):
        batch = some.batch(positions)
        for row, position in enumerate(positions):
            table = loader.plan["table"][position].as_py()
            columns = ["latents", "prompt", "video"]
            stored = read_table(made.store, table, columns, ids=[batch["clip_ids"][row]]).to_pylist()[0]
            assert some.videos(positions)[row] == stored["video"]
            assert batch["latents"][row].tobytes() == stored["latents"]
            assert batch["prompts"][row] == stored["prompt"]
            single = some[position]
            assert single.pop("latents").tobytes() == stored["latents"]
            assert single == {
                "position": position, "clip_id": batch["clip_ids"][row], "kind": batch["kinds"][row],
                "round": batch["rounds"][row], "prompt": stored["prompt"],
            }  # fmt: skip
    out = np.full((6, *loader.shape), np.nan, np.float16)
    assert loader.batch(positions, out)["latents"] is out
    assert out.tobytes() == batch["latents"].tobytes()


def test_a_position_does_not_depend_on_what_was_read_before(wide):
    used, fresh = (PlanLoader(wide.store, wide.plan) for _ in range(2))
    used.batch(range(8)), used.batch([23, 5])
    again, first = used.batch(range(4, 12)), fresh.batch(range(4, 12))
    assert np.array_equal(again.pop("latents"), first.pop("latents"))
    assert again == first


def test_a_clip_twice_in_one_batch(tiny, tmp_path):
    write_plan(expand([Pool("seed", "r0", "seed", ["seed-2"])], 0.0, 4, seed=0), tmp_path / "p.parquet")
    assert PlanLoader(tiny.store, tmp_path / "p.parquet").batch(range(4))["clip_ids"] == ["seed-2"] * 4


def test_beyond_the_plan_is_refused(tiny):
    loader = PlanLoader(tiny.store, tiny.root / "plans" / "r1.parquet")
    for positions in ([12], [-1, 3], range(13), []):
        with pytest.raises(StoreError, match="12 samples; positions asked for"):
            loader.batch(positions)


def test_a_plan_of_other_tables_is_refused(wide, tmp_path):
    plan, _ = read_plan(wide.plan)
    real = read_manifest(wide.root / "manifests" / "seed.json").digest
    for name, mend in (("r1", "mix@r1"), ("r0", "mix_r0")):
        write_plan(plan, tmp_path / f"{name}.parquet", {"seed": "0" * 64})
        with pytest.raises(
            StoreError, match=f"table seed of digest {'0' * 64}, the store's is {real}; .*repro {mend}`"
        ):
            PlanLoader(wide.store, tmp_path / f"{name}.parquet")


def test_a_damaged_row_is_named(wide, tmp_path):
    store = tmp_path / "data" / "store"
    shutil.copytree(wide.store, store)
    shutil.copytree(wide.root / "manifests", tmp_path / "data" / "manifests")
    loader = PlanLoader(store, wide.plan)
    position = loader.plan["table"].to_pylist().index("seed")
    row = int(loader._offset[position])
    values = loader._values[loader._table[position]]
    with open(values._plain.path, "r+b") as file:
        file.seek(values._plain.starts[row])
        file.write((77).to_bytes(8, "little"))
    with pytest.raises(StoreError, match=rf"seed.lance, row {row}: latents is 77 bytes where 1536 are due"):
        loader.batch([position])
    videos = loader._videos[loader._table[position]]
    with open(videos._plain.path, "r+b") as file:
        file.truncate(int(videos._plain.starts[row]) + 20)
    with pytest.raises(StoreError, match=rf"seed.lance, row {row}: video is \d+ bytes where \d+ are due"):
        loader.videos([position])


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
    shapes = r"latents are \[2, 3, 2, 2\] of seed-0, \[2, 2, 2, 2\] of seed-1"
    for clip, message in (("seed-1", shapes), ("seed-2", "latents of 2 VAEs")):
        write_plan(expand([Pool("seed", "r0", "seed", ["seed-0", clip])], 0.0, 2, seed=0), tmp_path / "p.parquet")
        with pytest.raises(StoreError, match=message):
            PlanLoader(tmp_path / "store", tmp_path / "p.parquet")

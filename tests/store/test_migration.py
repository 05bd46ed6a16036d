"""Stores of older schemas, written here as they were then, brought to the newest one; also after kills on the way."""

import contextlib
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import lance
import numpy as np
import pyarrow as pa
import pytest

from store import Store, migration
from store.audit import audit
from store.catalog import runs_table
from store.digest import bytes_sha256, digest, id_of
from store.embedding import embeddings
from store.latents import pack_latents
from store.migration import STEPS, Migrated, migrate
from store.mixture import Pool, expand, write_plan
from store.schema import SCHEMA_VERSION, VERSION_KEY
from store.table import StoreError, content_manifest, read_manifest
from store.uses import uses_table
from store.video import decode_video, encode_video

TYPES = {
    "t": pa.string(), "f": pa.float32(), "d": pa.float64(), "i": pa.int32(), "b": pa.large_binary(),
    "I": pa.list_(pa.int32()), "F": pa.list_(pa.float32()), "T": pa.list_(pa.string()), "E": pa.list_(pa.float32(), 96),
}  # fmt: skip
SHAPE = "fps:d num_frames:i height:i width:i"
VIDEO = "video:b video_sha256:t frames_sha256:t latents:b latents_shape:I vae_digest:t"
EMBEDDINGS = "look:E words:E"
PROV = "was_derived_from:T was_generated_by:t"
DRIFT = "drift_saturation:f drift_contrast:f drift_sharpness:f drift_motion:f drift:f"
ORACLE = "oracle_object_present:f? oracle_color_error:f? oracle_position_error:f? oracle_background_error:f?"
DELTAS = "delta_saturation:f delta_contrast:f delta_sharpness:f delta_motion:f"
SEED = f"clip_id:t kind:t split:t prompt:t source_path:t source_sha256:t license:t? extra:t {SHAPE} {VIDEO}"
ROLLOUTS = (
    "rollout_id:t round:t seed_clip_id:t model_digest:t prompt:t settings:t rng_name:t "
    f"{SHAPE} prefix_frames:i prefix_latents:i chunk_latents:i {VIDEO}"
)
SCORES = f"rollout_id:t round:t scorer:t saturation:F contrast:F sharpness:F motion:F {DELTAS} {DRIFT} gate:t {ORACLE}"
CLIPS = (
    "clip_id:t kind:t round:t rollout_id:t seed_clip_id:t model_digest:t prompt:t source_prompt:t "
    "rewrite_id:t rewriter_kind:t rewriter_version:t reversal_class:t marker_style:t fallback_from:t? raw_output:t "
    f"verdicts:t attempts:i {SHAPE} {VIDEO}"
)
# Schemas, column by column; ? is nullable.
SCHEMA_1 = {
    "seed": f"{SEED} run_id:t",
    "rollouts": f"{ROLLOUTS} run_id:t",
    "scores": f"{SCORES} run_id:t",
    "clips": f"{CLIPS} run_id:t",
    "catalog": f"clip_id:t kind:t split:t round:t prompt:t source_prompt:t? {DRIFT.replace(':f', ':f?')} {ORACLE} "
    "gate:t? reversal_class:t? marker_style:t? rewriter_kind:t? rollout_id:t? seed_clip_id:t? rewrite_id:t? "
    f"model_digest:t? run_id:t table:t {SHAPE} video_sha256:t",
    "runs": "run_id:t stage:t round:t? params:t inputs:t outputs:t git_commit:t? packages:t flow_run_id:t? device:t "
    "host:t started_at:t seconds:d",
}
SCHEMA_2 = {
    "seed": f"{SEED} {EMBEDDINGS} {PROV}",
    "rollouts": f"{ROLLOUTS} {PROV}",
    "scores": f"{SCORES} {PROV}",
    "clips": f"{CLIPS} {EMBEDDINGS} {PROV}",
    "catalog": f"clip_id:t kind:t split:t round:t prompt:t source_prompt:t? {DRIFT.replace(':f', ':f?')} drift_part:t? "
    f"{ORACLE} gate:t? scorer:t? reversal_class:t? marker_style:t? rewriter_kind:t? verdict:t? rollout_id:t? "
    f"seed_clip_id:t? rewrite_id:t? model_digest:t? {PROV} table:t {SHAPE} video_sha256:t {EMBEDDINGS}",
    "runs": "run_id:t stage:t round:t? used:T generated:T was_associated_with:t started_at_time:t ended_at_time:t "
    "seconds:d params:t inputs:t outputs:t git_commit:t? packages:t flow_run_id:t? device:t host:t",
    "uses": "use_id:t plan_id:t model_digest:t? clip_id:t kind:t clip_round:t round:t steps:I",
}
CURVES_3 = (
    "saturation colorfulness cr cb chroma_spread luma contrast contrast_coarse clipped_high clipped_low entropy "
    "sharpness detail blur spectral_slope high_frequency lab_l lab_a lab_b motion flow flicker ssim_first naturalness "
    "latent_curve"
)
DRIFT_3 = (
    "drift_saturation:f? drift_exposure:f? drift_contrast:f? drift_detail:f? drift_cast:f? drift_motion:f? "
    "drift_flicker:f? drift:f? drift_z:f? drift_part:t? drift_parts:t? seam:f? naturalness_drift:f? latent_drift:f?"
)
ORACLE_3 = (
    "oracle_object_present:f? oracle_count_error:f? oracle_color_error:f? oracle_area_error:f? "
    "oracle_position_error:f? oracle_trajectory_error:f? oracle_direction_error:f? oracle_order_error:f? "
    "oracle_background_error:f? oracle_error:f?"
)
SCHEMA_3 = SCHEMA_2 | {
    "scores": f"rollout_id:t round:t scorer:t {' '.join(f'{one}:F?' for one in CURVES_3.split())} {DRIFT_3} gates:t "
    f"{ORACLE_3} oracle_curves:t? measures:t? {PROV}",
    "catalog": f"clip_id:t kind:t split:t round:t prompt:t source_prompt:t? {DRIFT_3} {ORACLE_3} gates:t? scorer:t? "
    "reversal_class:t? marker_style:t? rewriter_kind:t? verdict:t? rollout_id:t? seed_clip_id:t? rewrite_id:t? "
    f"model_digest:t? {PROV} table:t {SHAPE} video_sha256:t {EMBEDDINGS}",
}
SCHEMAS = {1: SCHEMA_1, 2: SCHEMA_2, 3: SCHEMA_3}
# What bagger of these schemas itself wrote into the manifest of these very rows of scores_r1.
SCORES_DIGESTS = {
    1: "ec48270537b79ff3761fe864cb1d8bafc4c4d4d1905ad7a93c0fb8f354842a3a",
    2: "a3658e25f5e87fd7db44483507196c1765874439690c6ae3a2901fb4956318f3",
    3: "e3f0201757509de2aa2ccd1d181ea34da8e48e4a26c64b685bb925f3c1c4e995",
}
PARTS = ("saturation", "contrast", "sharpness", "motion")
MOVED_2 = ((4.0, -9.5, -3.5, 1.0), (3.0, -3.0, 0.0, -2.9))


def old_schema(name: str, version: int) -> pa.Schema:
    columns = [one.partition(":") for one in SCHEMAS[version][name.partition("_")[0]].split()]
    fields = [pa.field(column, TYPES[kind[0]], nullable=kind.endswith("?")) for column, _, kind in columns]
    return pa.schema(fields, metadata={VERSION_KEY: str(version).encode()})


def old_rows(rows: list[dict], name: str, version: int) -> list[dict]:
    """Today's synthetic rows as they were then."""
    names = old_schema(name, version).names
    return [{column: row.get("was_generated_by" if column == "run_id" else column) for column in names} for row in rows]


def old_scores(version: int) -> list[dict]:
    rows = []
    for n in range(2):
        parts = MOVED_2[n] if version == 2 else [0.1 * (n + 1)] * 4  # of schema 3 there are two by these names
        rows.append({
            "rollout_id": f"rollout-r1-{n}", "round": "r1", "scorer": "handmade@1",
            **{part: [0.0, 0.5, 1.0] for part in PARTS}, **{f"delta_{part}": 0.5 for part in PARTS},
            **{f"drift_{part}": value for part, value in zip(PARTS, parts, strict=True)},
            "drift": 0.9 - 0.3 * n, "gate": "clipped" if version == 2 and n else "",
            "drift_part": ("losing-contrast", "none")[n], "drift_parts": ("losing-contrast,darkening", "")[n],
            "gates": ("", "clipped")[n],
            "oracle_color_error": None if n else 0.25,
            "was_derived_from": [f"rollout-r1-{n}"], "was_generated_by": "run-score-r1",
        })  # fmt: skip
    return old_rows(rows, "scores", version)


def old_clips(rows: SimpleNamespace, model: str, version: int) -> list[dict]:
    """With all that was known of their rewrites, which had no table."""
    found = []
    for clip, rewrite in zip(rows.clips("r1", model), rows.rewrites("r1"), strict=True):
        told = {column: rewrite.get(column) for column in ("rewriter_version", "fallback_from", "raw_output")}
        checks = [{"name": one["name"], "pass": one["pass"]} for one in json.loads(rewrite["verdicts"])]
        found.append(clip | told | {"verdicts": json.dumps(checks), "attempts": rewrite["num_attempts"]})
    return old_rows(found, "clips", version)


def film(number: int) -> dict:
    video = encode_video(np.full((3, 16, 16, 3), 20 * number, np.uint8), fps=8.0)
    data, shape = pack_latents(np.full((2, 3, 2, 2), number, np.float32))
    return {
        "video": video, "video_sha256": bytes_sha256(video), "frames_sha256": bytes_sha256(b"frames"), "latents": data,
        "latents_shape": shape,
    }  # fmt: skip


def write(root: Path, name: str, rows: list[dict], version: int) -> None:
    table = pa.Table.from_pylist(rows, old_schema(name, version))
    lance.write_dataset(table, str(root / "store" / f"{name}.lance"))


def build(root: Path, rows: SimpleNamespace, version: int) -> SimpleNamespace:
    """Seed and one round, a manifest of the scores, catalog, runs, one plan and run records."""
    model = id_of("model", digest("r0"))
    tables = {
        "seed": old_rows(rows.seed(), "seed", version),
        "rollouts_r1": old_rows(rows.rollouts("r1", model), "rollouts", version),
        "scores_r1": old_scores(version),
        "clips_r1": old_clips(rows, model, version),
    }
    number = 0
    for name in ("seed", "rollouts_r1", "clips_r1"):
        for row in tables[name]:
            row.update(film(number := number + 1))
    told = {"table": "scores_r1", "rows": 2, "schema_version": version, "schema_digest": ""}
    (root / "manifests").mkdir()
    (root / "manifests" / "scores_r1.json").write_text(json.dumps(told | {"digest": SCORES_DIGESTS[version]}))
    for name, found in tables.items():
        write(root, name, found, version)
    names = old_schema("catalog", version).names
    catalog = [dict.fromkeys(names) | {"table": "seed", "round": "r0"} for _ in tables["seed"]]
    for row, clip in zip(catalog, tables["seed"], strict=True):
        row.update({column: clip[column] for column in row if column in clip})
    write(root, "catalog", catalog, version)
    dataset = lance.dataset(str(root / "store/catalog.lance"))
    dataset.tags.create("r0", 1)
    dataset.tags.create("r1", 1)  # the rows do not matter, the rounds do
    plan = expand([Pool("seed", "r0", "seed", ["seed-0", "seed-1", "seed-2"])], 0.0, 12, seed=0)
    plan_digest = write_plan(plan, root / "plans" / "r0.parquet")
    records = [
        rows.run("seed", None, {}, {"rows": 4}, 1),
        rows.run("train", "r0", {"plan_digest": plan_digest}, {"model_digest": model}, 2),
        *(rows.run(stage, "r1", {}, {}, n) for n, stage in enumerate(("rollout", "score", "correct"), 3)),
    ]
    (root / "runs").mkdir()
    for one in records:
        if version == 1:
            one["started_at"] = one.pop("started_at_time")
            del one["ended_at_time"], one["was_associated_with"]
        (root / "runs" / f"{one['stage']}.json").write_text(json.dumps(one))
    if version == 1:
        columns = ("params", "inputs", "outputs", "packages")
        write(root, "runs", [one | {name: json.dumps(one[name]) for name in columns} for one in records], version)
    else:  # tables that are the same today
        write(root, "runs", runs_table(records).to_pylist(), version)
        plans = {"r0": root / "plans" / "r0.parquet"}
        write(root, "uses", uses_table(records, plans).to_pylist(), version)
    return SimpleNamespace(root=root, tables=tables, model=model, version=version)


@pytest.fixture(scope="session")
def old_stores(tmp_path_factory, rows) -> dict[int, SimpleNamespace]:
    """One of each schema. Read only."""
    return {version: build(tmp_path_factory.mktemp(f"old{version}"), rows, version) for version in SCHEMAS}


def copy(old: SimpleNamespace, root: Path) -> SimpleNamespace:
    shutil.copytree(old.root, root, dirs_exist_ok=True)
    return SimpleNamespace(**{**vars(old), "root": root})


@pytest.fixture(params=SCHEMAS)
def old(request, old_stores, tmp_path) -> SimpleNamespace:
    return copy(old_stores[request.param], tmp_path)


@pytest.fixture
def old_1(old_stores, tmp_path) -> SimpleNamespace:
    return copy(old_stores[1], tmp_path)


@pytest.fixture
def old_2(old_stores, tmp_path) -> SimpleNamespace:
    return copy(old_stores[2], tmp_path)


@pytest.fixture
def old_3(old_stores, tmp_path) -> SimpleNamespace:
    return copy(old_stores[3], tmp_path)


def rows_of(old) -> dict[str, list[dict]]:
    """Of every sealed table."""
    return {name: lance.dataset(str(old.root / f"store/{name}.lance")).to_table().to_pylist() for name in old.tables}


def bring_up(old, **more) -> list[Migrated]:
    root = old.root
    return migrate(
        root / "store",
        root / "manifests",
        root / "runs",
        root / "plans",
        catalog_manifest=root / "catalog.json",
        **more,
    )


def state(root: Path) -> dict[str, str]:
    """Content digests of the tables, and the files beside them."""
    names = [path.stem for path in (root / "store").glob("*.lance")]
    files = [path for path in root.rglob("*") if path.is_file() and ".lance" not in str(path)]
    found = {name: content_manifest(root / "store", name).digest for name in names}
    return found | {str(path.relative_to(root)): bytes_sha256(path.read_bytes()) for path in files}


def test_an_older_store_says_how_to_bring_it_up(old):
    with pytest.raises(StoreError, match=f"older bagger .store schema {old.version}.*bagger migrate"):
        Store(old.root / "store").clips()


GONE = {"gate", *(f"{kind}_{part}" for kind in ("delta", "drift") for part in PARTS)}
MOVED_4 = {"rewriter_version", "fallback_from", "raw_output", "verdicts", "attempts"}


def without(row: dict, names: set[str]) -> dict:
    return {name: value for name, value in row.items() if name not in names}


def assert_rewrites_of(store: Store, clips: list[dict]) -> None:
    """Table rewrites_r1 has all that the clips of an older schema told of their rewrites."""
    manifest = read_manifest(Path(store.uri).parent / "manifests/rewrites_r1.json")
    assert manifest == content_manifest(store.uri, "rewrites_r1")
    rows = store.read("rewrites_r1").to_pylist()
    assert [one["rewrite_id"] for one in rows] == [one["rewrite_id"] for one in clips] == ["rewrite-0", "rewrite-1"]
    for row, was in zip(rows, clips, strict=True):
        same = [column for column in was if column in row and column not in ("verdicts", "attempts")]
        assert {"prompt", "source_prompt", "raw_output", "fallback_from", "rewriter_version"} < set(same)
        told = without({column: row[column] for column in same}, {"was_derived_from"})
        assert told == {column: was[column] for column in told}
        assert row["was_generated_by"] == was.get("was_generated_by", was.get("run_id"))
        verdicts = [one | {"detail": ""} for one in json.loads(was["verdicts"])]
        assert (json.loads(row["verdicts"]), row["num_attempts"]) == (verdicts, was["attempts"])
        (attempt,) = json.loads(row["attempts"])
        assert (attempt["raw_output"], attempt["verdicts"]) == (was["raw_output"], verdicts)
        assert (row["reasons"], row["spans"], row["model_id"], row["was_derived_from"]) == ([], "[]", None, [])


def test_there_is_a_step_for_every_older_version():
    assert sorted(STEPS) == list(range(1, SCHEMA_VERSION))


def test_everything_comes_up_and_nothing_is_lost(old_1):
    old = old_1
    before = rows_of(old)
    done = bring_up(old)
    assert [(one.name, one.version, one.rows) for one in done] == [
        ("clips_r1", 1, 2), ("rollouts_r1", 1, 2), ("scores_r1", 1, 2), ("seed", 1, 4), ("run records", 1, 5),
        ("catalog", 1, 4), ("runs", 1, 5),
    ]  # fmt: skip
    store = Store(old.root / "store")
    paths = {"manifests": old.root / "manifests", "plans": old.root / "plans"}
    assert audit(store, **paths, catalog_manifest=old.root / "catalog.json", rounds=["r1"]) == []
    assert_rewrites_of(store, before["clips_r1"])
    for name, rows in before.items():
        for row, was in zip(store.read(name).to_pylist(), rows, strict=True):
            assert row["was_generated_by"] == was.pop("run_id")
            kept = without(was, GONE | MOVED_4)
            assert {column: row[column] for column in kept} == kept
    derived = {name: store.read(name)["was_derived_from"].to_pylist()[0] for name in old.tables}
    assert derived == {
        "seed": [id_of("file", old.tables["seed"][0]["source_sha256"])],
        "rollouts_r1": ["seed-0", old.model],
        "scores_r1": ["rollout-r1-0"],
        "clips_r1": ["rollout-r1-0", "rewrite-0"],
    }
    clip = store.read("clips_r1").to_pylist()[1]
    expected = embeddings(decode_video(clip["video"]), clip["prompt"])
    assert clip["look"] == expected["look"].tolist()
    assert clip["words"] == expected["words"].tolist()
    run = next(one for one in store.read("runs").to_pylist() if one["stage"] == "train")
    assert (run["started_at_time"], run["ended_at_time"]) == (
        "2026-01-01T00:00:02+00:00",
        "2026-01-01T00:00:03.500+00:00",
    )
    assert (run["was_associated_with"], run["generated"]) == ("bagger 0.1", [old.model])
    assert json.loads((old.root / "runs/train.json").read_text())["ended_at_time"] == run["ended_at_time"]
    assert [one.as_py() for one in store.read("uses", ["clip_id"])["clip_id"]] == ["seed-0", "seed-1", "seed-2"]
    assert store.clips(round="r1").num_rows == 2


def test_scores_of_schema_2_say_by_name_what_moved(old_2):
    old = old_2
    before = rows_of(old)
    done = bring_up(old)
    assert [(one.name, one.version, one.rows) for one in done] == [
        ("clips_r1", 2, 2), ("rollouts_r1", 2, 2), ("scores_r1", 2, 2), ("seed", 2, 4),
        ("catalog", 2, 4), ("runs", 2, 5), ("uses", 2, 3),
    ]  # fmt: skip
    store = Store(old.root / "store")
    paths = {"manifests": old.root / "manifests", "plans": old.root / "plans"}
    assert audit(store, **paths, catalog_manifest=old.root / "catalog.json", rounds=["r1"]) == []
    assert_rewrites_of(store, before["clips_r1"])
    before["clips_r1"] = [without(row, MOVED_4) for row in before["clips_r1"]]
    for name, rows in before.items():
        if name != "scores_r1":
            assert store.read(name).to_pylist() == rows
    scores = store.read("scores_r1").to_pylist()
    assert [(one["drift_part"], one["drift_parts"], one["gates"]) for one in scores] == [
        ("losing-contrast", "losing-contrast,over-saturating,blurring", ""), ("none", "", "clipped")
    ]  # fmt: skip
    for score, was in zip(scores, before["scores_r1"], strict=True):
        kept = without(was, GONE)
        assert {name: score[name] for name in kept} == kept
        new = without(score, {*kept, "drift_part", "drift_parts", "gates"})
        assert new
        assert set(new.values()) == {None}  # above all drift_saturation, which was something else
    assert store.clips(part="blurring")["clip_id"].to_pylist() == ["clip-r1-0"]
    assert store.clips(where="gates = 'clipped'", columns=["drift_part", "scorer"]).to_pylist() == [
        {"drift_part": "none", "scorer": "handmade@1"}
    ]
    assert store.read("uses").num_rows == 3


def test_clips_of_schema_3_give_their_rewrites_a_table(old_3):
    old = old_3
    before = rows_of(old)
    done = bring_up(old)
    assert [(one.name, one.version, one.rows) for one in done] == [
        ("clips_r1", 3, 2), ("rollouts_r1", 3, 2), ("scores_r1", 3, 2), ("seed", 3, 4),
        ("catalog", 3, 4), ("runs", 3, 5), ("uses", 3, 3),
    ]  # fmt: skip
    store = Store(old.root / "store")
    paths = {"manifests": old.root / "manifests", "plans": old.root / "plans"}
    assert audit(store, **paths, catalog_manifest=old.root / "catalog.json", rounds=["r1"]) == []
    assert_rewrites_of(store, before["clips_r1"])
    before["clips_r1"] = [without(row, MOVED_4) for row in before["clips_r1"]]
    assert {name: store.read(name).to_pylist() for name in before} == before
    assert store.clips(columns=["verdict"])["verdict"].to_pylist() == ["passed", "passed"]
    tree = store.lineage("rewrite-1")
    assert (tree["fallback_from"], tree["num_attempts"], tree["parents"][0]["stage"]) == ("toy-grammar", 2, "correct")


def test_clips_that_share_a_rewrite_give_one_row_and_a_round_without_clips_gives_none(old_3, rows):
    clips = [one | {"rewrite_id": "rewrite-0"} for one in old_clips(rows, old_3.model, 3)]
    for name, found in (("clips_r1", clips), ("clips_r2", [])):
        shutil.rmtree(old_3.root / f"store/{name}.lance", ignore_errors=True)
        write(old_3.root, name, [one | film(n) for n, one in enumerate(found)], 3)
    for name in ("rollouts_r2", "scores_r2"):
        write(old_3.root, name, [], 3)
    lance.dataset(str(old_3.root / "store/catalog.lance")).tags.create("r2", 1)
    bring_up(old_3)
    store = Store(old_3.root / "store")
    assert store.read("rewrites_r1", ["rewrite_id", "prompt"]).to_pylist() == [
        {"rewrite_id": "rewrite-0", "prompt": clips[0]["prompt"]}
    ]
    assert store.open("rewrites_r2").count_rows() == 0
    assert read_manifest(old_3.root / "manifests/rewrites_r2.json").rows == 0


def test_rewrites_that_are_there_stay_if_they_are_those_of_the_clips(old_stores, tmp_path, rows):
    """A killed call has placed them, or they are of another state of the project."""
    mine = [one | {"author": "somebody"} for one in rows.rewrites("r1")]
    for name, found, author in (
        ("ours", mine, "somebody"),
        ("another's", [mine[0], mine[1] | {"rewrite_id": "rewrite-9"}], None),
    ):
        old = copy(old_stores[3], tmp_path / name)
        rows.seal(old.root, "rewrites_r1", found)
        bring_up(old)
        there = Store(old.root / "store").read("rewrites_r1", ["rewrite_id", "author"]).to_pylist()
        assert there == [{"rewrite_id": f"rewrite-{n}", "author": author} for n in range(2)]


def test_what_is_not_to_be_trusted_gives_no_rewrites(old_3, rows):
    manifest = old_3.root / "manifests/clips_r1.json"
    told = {"table": "clips_r1", "rows": 2, "schema_version": 3, "schema_digest": "", "digest": "0" * 64}
    manifest.write_text(json.dumps(told))
    with pytest.raises(StoreError, match="clips_r1 is not what its manifest"):
        bring_up(old_3)
    manifest.unlink()
    shutil.rmtree(old_3.root / "store/clips_r1.lance")
    damaged = [one | film(n) | {"verdicts": '{"name": 1}'} for n, one in enumerate(old_clips(rows, old_3.model, 3))]
    write(old_3.root, "clips_r1", damaged, 3)
    with pytest.raises(StoreError, match="rewrite-0: its verdicts are no JSON list .*got '.*`dvc checkout --force`"):
        bring_up(old_3)
    assert not (old_3.root / "store/rewrites_r1.lance").exists()
    assert not (old_3.root / "store/.sealing").exists()


def test_a_second_time_does_nothing(old):
    bring_up(old)
    before = {path: path.stat().st_mtime_ns for path in old.root.rglob("*")}
    assert bring_up(old) == []
    assert {path: path.stat().st_mtime_ns for path in old.root.rglob("*")} == before


def test_dry_run_tells_the_same_and_changes_nothing(old):
    before = {path: path.stat().st_mtime_ns for path in old.root.rglob("*")}
    told = bring_up(old, dry_run=True)
    assert {path: path.stat().st_mtime_ns for path in old.root.rglob("*")} == before
    assert told == bring_up(old)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("step", [0, 1, 2, 3, *range(4, 19, 2)])
def test_killed_anywhere_the_same_call_finishes(old, old_stores, tmp_path_factory, monkeypatch, step):
    """The n-th file operation that changes what is there never happens."""
    whole = copy(old_stores[old.version], tmp_path_factory.mktemp("whole"))
    bring_up(whole)
    left = [step]

    def until(function):
        def call(*arguments, **more):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return function(*arguments, **more)

        return call

    with monkeypatch.context() as patch:
        for name in ("place", "write_manifest", "_write", "build_catalog"):
            patch.setattr(migration, name, until(getattr(migration, name)))
        with contextlib.suppress(Killed):
            bring_up(old)
    bring_up(old)
    assert state(old.root) == state(whole.root)


def test_a_table_that_its_manifest_does_not_know_is_left_alone(old):
    path = old.root / "manifests" / "scores_r1.json"
    path.write_text(path.read_text().replace(SCORES_DIGESTS[old.version], "0" * 64))
    with pytest.raises(StoreError, match=re.escape("scores_r1 is not what its manifest")):
        bring_up(old)
    assert lance.dataset(str(old.root / "store/scores_r1.lance")).schema.metadata[VERSION_KEY] == b"%d" % old.version
    assert not (old.root / "store/.sealing").exists()


def test_a_video_that_cannot_be_read_is_named(old_1):
    old = old_1
    shutil.rmtree(old.root / "store/seed.lance")
    rows = [dict(row) for row in old.tables["seed"]]
    rows[2]["video"] = b"no mp4"
    write(old.root, "seed", rows, 1)
    with pytest.raises(StoreError, match="clip seed-2: .*`dvc checkout --force`"):
        bring_up(old)


def test_a_newer_table_stops_everything_beforehand(old):
    newer = old_schema("scores", old.version).with_metadata({VERSION_KEY: str(SCHEMA_VERSION + 1).encode()})
    lance.write_dataset(newer.empty_table(), str(old.root / "store/scores_r2.lance"))
    with pytest.raises(StoreError, match="newer bagger"):
        bring_up(old)
    assert lance.dataset(str(old.root / "store/clips_r1.lance")).schema.metadata[VERSION_KEY] == b"%d" % old.version


def test_manifests_come_up_with_their_tables(old):
    bring_up(old)
    for name in old.tables:
        assert read_manifest(old.root / "manifests" / f"{name}.json") == content_manifest(old.root / "store", name)

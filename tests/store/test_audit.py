"""The audit: silent on a whole store, and for every way to break one a finding that names the row and the repair."""

import dataclasses
import json
import os
import shutil
import time
from types import SimpleNamespace

import lance
import numpy as np
import pyarrow as pa
import pytest

from store import Store
from store.audit import _Audit, audit
from store.catalog import build_catalog
from store.digest import bytes_sha256
from store.manifest import write_manifest
from store.mixture import read_plan, write_plan
from store.registry import register
from store.schema import CATALOG, SCHEMA_VERSION, VERSION_KEY
from store.table import StoreError, content_manifest
from store.video import encode_video


def look(tiny, **changes):
    settings = {"decode": False, "manifests": tiny.root / "manifests", "plans": tiny.root / "plans"} | changes
    return audit(Store(tiny.store), **settings)


def checks(findings) -> set[tuple[str, str, str]]:
    assert all(one.repair for one in findings)
    return {(one.check, one.table, one.subject) for one in findings}


def rewrite(tiny, name: str, change) -> None:
    """The sealed table with other rows, and a manifest that fits them."""
    path = tiny.store / f"{name}.lance"
    table = lance.dataset(str(path)).to_table()
    rows = table.to_pylist()
    changed = change(rows) or rows
    shutil.rmtree(path)
    lance.write_dataset(pa.Table.from_pylist(changed, table.schema), str(path))
    write_manifest(content_manifest(tiny.store, name), tiny.root / "manifests" / f"{name}.json")


def test_a_whole_store_has_no_findings_and_progress_ends_at_its_end(tiny, tmp_path):
    told = []
    path = tmp_path / "catalog.json"
    write_manifest(tiny.manifest, path)
    assert look(tiny, catalog_manifest=path, rounds=["r1", "r2"], progress=lambda *one: told.append(one)) == []
    assert told[-1] == (20, 20)  # 4 seed clips, 2 rounds of 2 rollouts, rewrites, scores, clips
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_the_table_is_not_what_its_manifest_says(tiny_copy):
    rewrite(tiny_copy, "scores_r1", lambda rows: rows[0].update(gates="black"))
    path = tiny_copy.root / "manifests" / "scores_r1.json"
    path.write_text(path.read_text().replace('"rows": 2', '"rows": 3'))
    (tiny_copy.root / "manifests" / "rollouts_r2.json").unlink()
    shutil.copy(path, path.with_name("scores_r9.json"))
    found = [one for one in look(tiny_copy) if one.check == "manifest"]
    assert {one.table: one.repair for one in found} == {
        "scores_r1": f"dvc checkout --force {tiny_copy.store}/scores_r1.lance {path}",
        "rollouts_r2": "dvc repro rollout@r2",
        "scores_r9": f"dvc checkout --force {tiny_copy.store}/scores_r9.lance",
    }
    assert "2 rows" in next(one.seen for one in found if one.table == "scores_r1")


FAILED = '[{"name": "parses", "pass": false, "detail": ""}]'


def double(rows):
    return [*rows, rows[0]]


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("clips_r1", double, ("duplicate", "clips_r1", "clip-r1-0")),
        ("clips_r2", lambda rows: rows[0].update(clip_id="clip-r1-0"), ("duplicate", "clips_r2", "clip-r1-0")),
        ("clips_r1", lambda rows: rows[1].update(video=b""), ("missing", "clips_r1", "clip-r1-1")),
        ("seed", lambda rows: rows[2].update(video=rows[2]["video"] + b"x"), ("digest", "seed", "seed-2")),
        ("rollouts_r1", lambda rows: rows[0].update(latents=b""), ("missing", "rollouts_r1", "rollout-r1-0")),
        ("rollouts_r1", lambda rows: rows[0].update(latents=b"123"), ("latents", "rollouts_r1", "rollout-r1-0")),
        ("seed", lambda rows: rows[0].update(latents_shape=[2, 12]), ("latents", "seed", "seed-0")),
        (
            "seed",
            lambda rows: rows[0].update(latents=np.full(24, np.inf, "<f2").tobytes()),
            ("latents", "seed", "seed-0"),
        ),
        ("scores_r1", lambda rows: rows[0].update(rollout_id="rollout-x"), ("orphan", "scores_r1", "rollout-x")),
        ("rollouts_r1", lambda rows: rows[:1], ("orphan", "clips_r1", "clip-r1-1")),
        ("seed", lambda rows: rows[1:], ("orphan", "rollouts_r2", "rollout-r2-0")),
        ("clips_r2", lambda rows: rows[0].update(model_digest="model-x"), ("orphan", "clips_r2", "clip-r2-0")),
        ("clips_r2", lambda rows: rows[0].update(was_generated_by="run-x"), ("orphan", "clips_r2", "clip-r2-0")),
        ("clips_r2", lambda rows: rows[0].update(was_derived_from=["clip-x"]), ("orphan", "clips_r2", "clip-r2-0")),
        ("clips_r2", lambda rows: rows[0].update(rewrite_id="rewrite-x"), ("orphan", "clips_r2", "clip-r2-0")),
        ("rewrites_r1", lambda rows: rows[:1], ("orphan", "clips_r1", "clip-r1-1")),
        ("rewrites_r1", double, ("duplicate", "rewrites_r1", "rewrite-0")),
        ("rewrites_r1", lambda rows: rows[0].update(was_generated_by="run-x"), ("orphan", "rewrites_r1", "rewrite-0")),
        ("rewrites_r1", lambda rows: rows[0].update(prompt="else"), ("prompt", "clips_r1", "clip-r1-0")),
        ("rewrites_r2", lambda rows: rows[0].update(raw_output="else"), ("prompt", "rewrites_r2", "rewrite-0")),
        ("rewrites_r2", lambda rows: rows[1].update(verdicts=FAILED), ("catalog", "catalog", "clip-r2-1")),
        ("rewrites_r2", lambda rows: rows[1].update(verdicts="[1]"), ("prompt", "rewrites_r2", "")),
        ("clips_r2", lambda rows: rows[1].update(prompt="else"), ("prompt", "clips_r2", "clip-r2-1")),
        ("clips_r2", lambda rows: rows[1].update(source_prompt="else"), ("prompt", "clips_r2", "clip-r2-1")),
        ("rollouts_r2", lambda rows: rows[1].update(prompt="else"), ("prompt", "clips_r2", "clip-r2-1")),
        ("uses", lambda rows: rows[0].update(clip_id="clip-x"), ("orphan", "uses", None)),
        ("runs", lambda rows: [one for one in rows if one["run_id"] != "run-seed"], ("orphan", "seed", "seed-0")),
        ("clips_r2", lambda rows: rows[:1], ("catalog", "catalog", "clip-r2-1")),
        ("clips_r2", lambda rows: rows[1].update(prompt="else"), ("catalog", "catalog", "clip-r2-1")),
        ("scores_r2", lambda rows: rows[0].update(drift=7.0), ("catalog", "catalog", "clip-r2-0")),
    ],
)  # fmt: skip
def test_every_break_is_found_where_it_is(tiny_copy, name, change, expected):
    rewrite(tiny_copy, name, change)
    found = checks(look(tiny_copy))
    assert any(one[:2] == expected[:2] and expected[2] in (None, one[2]) for one in found), found


def test_prompts_are_mended_by_the_stages_that_make_them(tiny_copy):
    rewrite(tiny_copy, "clips_r1", lambda rows: rows[1].update(prompt="else"))
    rewrite(tiny_copy, "rollouts_r2", lambda rows: [one | {"prompt": "else"} for one in rows])
    found = {(one.table, one.subject, one.seen): one.repair for one in look(tiny_copy) if one.check == "prompt"}
    assert found == {
        ("clips_r1", "clip-r1-1", "prompt of 1 rows differs from that of their rewrites in rewrites_r1"):
            "dvc repro correct@r1",
        ("clips_r2", "clip-r2-0", "source_prompt of 2 rows differs from the prompt of their rollouts in rollouts_r2"):
            "dvc repro rewrite@r2 correct@r2",
    }  # fmt: skip


def test_prompts_of_a_damaged_table_are_mended_with_it(tiny_copy):
    manifest = tiny_copy.root / "manifests" / "rewrites_r1.json"
    before = manifest.read_bytes()
    rewrite(tiny_copy, "rewrites_r1", lambda rows: [one | {"prompt": "else", "verdicts": FAILED} for one in rows])
    manifest.write_bytes(before)
    found = look(tiny_copy)
    assert {one.repair for one in found} == {f"dvc checkout --force {tiny_copy.store}/rewrites_r1.lance {manifest}"}
    assert {(one.check, one.table) for one in found} == {
        ("manifest", "rewrites_r1"), ("prompt", "clips_r1"), ("prompt", "rewrites_r2"), ("catalog", "catalog"),
    }  # fmt: skip


def test_rewrites_that_no_clip_has_and_that_rounds_share_are_fine(tiny_copy):
    rewrite(tiny_copy, "rewrites_r2", lambda rows: [*rows, rows[0] | {"rewrite_id": "rewrite-unused"}])
    assert look(tiny_copy) == []


def test_clips_without_a_table_of_rewrites_are_one_finding(tiny_copy):
    shutil.rmtree(tiny_copy.store / "rewrites_r1.lance")
    (tiny_copy.root / "manifests/rewrites_r1.json").unlink()
    found = look(tiny_copy)
    assert {one.repair for one in found} == {"dvc repro rewrite@r1"}
    assert [(one.check, one.table) for one in found] == [("orphan", "clips_r1"), ("missing table", "rewrites_r1")]
    assert found[0].seen == "rewrite_id of 2 rows is of rewrites_r1, which cannot be read"


def test_an_orphan_is_mended_by_the_stage_that_makes_it(tiny_copy):
    rewrite(tiny_copy, "rollouts_r1", lambda rows: rows[:1])
    found = [one for one in look(tiny_copy) if one.check == "orphan"]
    assert {(one.table, one.repair) for one in found} == {
        ("scores_r1", "dvc repro score@r1"),
        ("clips_r1", "dvc repro correct@r1"),
    }
    assert any("rollout_id rollout-r1-1 is nowhere" in one.seen for one in found)


def test_an_orphan_of_a_damaged_parent_is_mended_with_the_parent(tiny_copy):
    manifest = tiny_copy.root / "manifests" / "rollouts_r1.json"
    before = manifest.read_bytes()
    rewrite(tiny_copy, "rollouts_r1", lambda rows: rows[:1])
    manifest.write_bytes(before)
    found = [one for one in look(tiny_copy) if one.check == "orphan" and "rollout_id" in one.seen]
    assert {one.table for one in found} == {"scores_r1", "clips_r1"}
    assert {one.repair for one in found} == {f"dvc checkout --force {tiny_copy.store}/rollouts_r1.lance {manifest}"}


def test_two_clips_of_one_video_are_a_warning(tiny_copy):
    def same(rows):
        rows[1].update({column: rows[0][column] for column in ("video", "video_sha256")})

    rewrite(tiny_copy, "seed", same)
    found = {one.check: one for one in look(tiny_copy)}
    assert (found["same video"].severity, found["same video"].subject) == ("warning", "seed-0")
    assert "seed-1" in found["same video"].seen


def test_videos_are_decoded_and_compared_with_their_row(tiny_copy):
    clips = {
        "seed-0": encode_video(np.full((3, 16, 16, 3), 90, np.uint8), fps=8.0),
        "seed-1": encode_video(np.full((4, 16, 16, 3), 90, np.uint8), fps=8.0),
        "seed-2": encode_video(np.full((3, 16, 18, 3), 90, np.uint8), fps=24.0),
    }
    clips["seed-3"] = clips["seed-0"][:-20]

    def encode(rows):
        for row in rows:
            row["video"] = clips[row["clip_id"]]
            row["video_sha256"] = bytes_sha256(row["video"])

    rewrite(tiny_copy, "seed", encode)
    found = [(one.check, one.subject, one.seen) for one in look(tiny_copy, decode=True, tables=["seed"])]
    assert [(check, clip) for check, clip, _ in found] == [
        ("media", "seed-1"),
        ("media", "seed-2"),
        ("media", "seed-2"),
        ("undecodable", "seed-3"),
    ]
    assert found[0][2] == "video is [4, 16, 16] frames, height, width; the row says [3, 16, 16]"
    assert "video runs at 24.0 frames a second; the row says 8.0" in [seen for *_, seen in found]


def test_tags_must_be_the_rounds_one_after_the_other(tiny_copy):
    catalog = lance.dataset(str(tiny_copy.store / "catalog.lance"))
    catalog.tags.update("r1", 1)
    assert ("tags", "catalog", "r1") in checks(look(tiny_copy))
    catalog.tags.delete("r1")
    assert [one.seen for one in look(tiny_copy)] == ["no tag r1"]


def test_the_catalog_has_a_manifest_too(tiny_copy):
    path = tiny_copy.root / "catalog.json"
    assert checks(look(tiny_copy, catalog_manifest=path)) == {("manifest", "catalog", str(path))}
    write_manifest(dataclasses.replace(tiny_copy.manifest, digest="0" * 64), path)
    (found,) = look(tiny_copy, catalog_manifest=path)
    assert (found.check, found.repair) == ("manifest", "dvc repro catalog")


def test_a_round_that_is_no_longer_asked_for_is_a_warning(tiny_copy):
    found = look(tiny_copy, rounds=["r1"])
    assert ("stale", "clips_r2", "") in checks(found)
    assert {one.repair for one in found if one.severity == "error"} == {"dvc repro catalog"}


def test_missing_tables_name_their_stage(tiny_copy):
    for name in ("scores_r1", "uses"):
        shutil.rmtree(tiny_copy.store / f"{name}.lance")
    repairs = {one.table: one.repair for one in look(tiny_copy) if one.check == "missing table"}
    assert repairs == {"scores_r1": "dvc repro score@r1", "uses": "dvc repro catalog"}


@pytest.mark.parametrize(
    ("version", "repair"), [(SCHEMA_VERSION - 1, "bagger migrate"), (SCHEMA_VERSION + 1, "update bagger")]
)
def test_another_schema_says_what_to_do(tiny_copy, version, repair):
    path = tiny_copy.store / "scores_r2.lance"
    table = lance.dataset(str(path)).to_table()
    shutil.rmtree(path)
    lance.write_dataset(table.replace_schema_metadata({VERSION_KEY: str(version).encode()}), str(path))
    assert (repair, "scores_r2") in {(one.repair, one.table) for one in look(tiny_copy)}


def test_damaged_files_strange_tables_and_leftovers(tiny_copy):
    data = next((tiny_copy.store / "clips_r1.lance" / "data").iterdir())
    os.truncate(data, data.stat().st_size // 2)
    lance.write_dataset(CATALOG.empty_table(), str(tiny_copy.store / "mine.lance"))
    (tiny_copy.store / ".sealing" / "clips_r2.lance").mkdir(parents=True)
    (tiny_copy.root / "manifests" / ".seed.json.tmp").touch()
    plan, _ = read_plan(tiny_copy.files["r1"])
    strange = plan.set_column(plan.column_names.index("clip_id"), "clip_id", pa.array(["clip-x"] * len(plan)))
    write_plan(strange, tiny_copy.files["r1"])
    tiny_copy.files["r2"].write_bytes(b"PAR1")
    found = {(one.severity, one.check, one.table): one for one in look(tiny_copy)}
    assert found["error", "unreadable", "clips_r1"].repair == f"dvc checkout --force {tiny_copy.store}/clips_r1.lance"
    assert ("warning", "unknown", "mine") in found
    assert ("warning", "leftover", "") in found
    assert found["error", "orphan", ""].subject == str(tiny_copy.files["r1"])
    assert found["error", "orphan", ""].repair == "dvc repro mix@r1"
    assert found["error", "plan", ""].repair == f"dvc checkout --force {tiny_copy.files['r2']}"


def with_records(tiny):
    """The files of a whole project beside the tables; gives the settings that look at them."""
    (tiny.root / "runs").mkdir()
    for one in tiny.runs:
        name = "_".join(filter(None, (one["stage"], one["round"])))
        (tiny.root / "runs" / f"{name}.json").write_text(json.dumps(one))
    for name, digest in tiny.plans.items():
        (tiny.root / "plans" / f"{name}.json").write_text(json.dumps({"plan_digest": digest}))
    return {"records": tiny.root / "runs"}


def test_runs_and_training_use_are_what_plans_and_records_say(tiny_copy):
    settings = with_records(tiny_copy)
    assert look(tiny_copy, **settings) == []
    breaks = {
        "half of the rows": ("uses", lambda rows: rows[::2], "rows of the plans and run records are not there"),
        "no steps": ("uses", lambda rows: [one.update(steps=[]) for one in rows] and rows, "steps of 15 rows differs"),
        "one more": ("uses", lambda rows: [*rows, rows[0] | {"use_id": "plan-x/seed-0"}], "1 rows that the plans"),
        "no mixing": ("runs", lambda rows: [one for one in rows if one["stage"] != "mix"], "3 rows of the run records"),
        "other device": ("runs", lambda rows: rows[0].update(device="abacus"), "device of 1 rows differs"),
    }
    breaks["another model"] = (
        "uses",
        lambda rows: [one.update(model_digest=tiny_copy.models["base"]) for one in rows] and rows,
        "model_digest of 15 rows differs",
    )
    for name, change, words in breaks.values():
        path = tiny_copy.store / f"{name}.lance"
        before = lance.dataset(str(path)).to_table()
        rows = before.to_pylist()
        changed = change(rows) or rows
        shutil.rmtree(path)
        lance.write_dataset(pa.Table.from_pylist(changed, before.schema), str(path))
        (found,) = look(tiny_copy, **settings)
        assert words in found.seen
        assert (found.check, found.table, found.repair) == (name, name, "dvc repro catalog")
        shutil.rmtree(path)
        lance.write_dataset(before, str(path))


@pytest.mark.parametrize("path", ["plans/r2.parquet", "plans/r0.json", "runs/train_r1.json", "runs/score_r1.json"])
def test_plans_and_run_records_must_be_there(tiny_copy, path):
    settings = with_records(tiny_copy)
    (tiny_copy.root / path).unlink()
    (found,) = look(tiny_copy, **settings)
    assert found.subject == str(tiny_copy.root / path)
    assert found.repair == f"dvc checkout --force {tiny_copy.root / path}"
    if path.endswith("parquet"):  # known without records, too
        assert look(tiny_copy) == [found]


def test_a_model_that_trained_on_another_plan_is_to_be_trained_again(tiny_copy):
    settings = with_records(tiny_copy)
    path = tiny_copy.root / "runs" / "train_r1.json"
    record = json.loads(path.read_text())
    record["inputs"]["plan_digest"] = "0" * 64
    path.write_text(json.dumps(record))
    found = {one.check: one for one in look(tiny_copy, **settings)}
    assert found["plan"].repair == "dvc repro train@r1"
    assert found["runs"].repair == "dvc repro catalog"
    path.write_text("{")
    assert ("record", "", str(path)) in checks(look(tiny_copy, **settings))


def test_a_table_that_cannot_be_read_is_the_one_repair(tiny_copy):
    settings = with_records(tiny_copy)
    data = next((tiny_copy.store / "clips_r1.lance" / "data").iterdir())
    os.truncate(data, data.stat().st_size // 2)
    found = look(tiny_copy, **settings, catalog_manifest=None)
    assert {one.repair for one in found} == {f"dvc checkout --force {tiny_copy.store}/clips_r1.lance"}
    assert [one.table for one in found if one.check == "unreadable"] == ["clips_r1"]
    assert sum(one.table == "uses" for one in found) == 1


def test_a_missing_parent_is_one_finding_and_many_orphans_take_no_longer(tiny_copy, rows):
    shutil.rmtree(tiny_copy.store / "rollouts_r1.lance")
    found = [one for one in look(tiny_copy) if one.check == "orphan" and one.table == "clips_r1"]
    assert [one.seen for one in found] == [
        "rollout_id of 2 rows is of rollouts_r1, which cannot be read",
        "was_derived_from of 2 rows is of rollouts_r1, which cannot be read",
    ]
    assert {one.repair for one in found} == {f"dvc checkout --force {tiny_copy.store}/rollouts_r1.lance"}
    (scores,) = rows.scores("r2")[:1]
    many = [scores | {"rollout_id": f"rollout-{n}", "was_derived_from": ["rollout-r2-0"]} for n in range(20_000)]
    rows.seal(tiny_copy.root, "scores_r2", many)
    began = time.process_time()
    found = [one for one in look(tiny_copy, tables=["scores_r2"]) if one.check == "orphan"]
    assert len(found) == 20_000
    assert time.process_time() - began < 5  # 20 s where each orphan is looked for by itself


def test_what_a_server_says_is_not_repeated(tiny):
    error = OSError("GET https://team.s3/x?X-Amz-Credential=AKIASECRET&X-Amz-Signature=abc failed\nmore")
    found = _Audit(SimpleNamespace(uri="s3://team/registry", names=list), None, ())
    found.registry = True
    found._unreadable("clips", error)
    found._unreadable("seed", OSError(""))
    assert "SECRET" not in str(found.findings)
    assert "'team'" in found.findings[0].seen
    assert found.findings[1].seen == "cannot read s3://team/registry/seed.lance: Lance gave up"


def test_tables_may_be_chosen(tiny_copy):
    rewrite(tiny_copy, "clips_r1", lambda rows: rows[0].update(video=b""))
    assert look(tiny_copy, tables=["seed", "clips_r2"]) == []
    assert {one.check for one in look(tiny_copy, tables=["clips_r1"])} == {"missing"}
    with pytest.raises(StoreError, match="no table 'clips_r7'"):
        look(tiny_copy, tables=["clips_r7"])


def test_a_registry_in_s3_is_audited_too(tiny, s3):
    register(Store(tiny.store), "s3://team/audited", "one")
    assert audit(Store("s3://team/audited"), decode=False) == []


def test_a_registry_is_audited_too(tiny_copy):
    uri = tiny_copy.root / "registry"
    register(Store(tiny_copy.store), uri, "one")
    register(Store(tiny_copy.store), uri, "two", rounds=["r1"])
    assert audit(Store(uri), decode=False) == []
    lance.dataset(str(uri / "clips.lance")).delete("clip_id = 'clip-r1-0'")
    lance.dataset(str(uri / "runs.lance")).delete("run_id = 'run-score-r2'")
    found = audit(Store(uri), decode=False)
    assert {(one.check, one.table, one.subject) for one in found} >= {
        ("catalog", "catalog", "clip-r1-0"),
        ("orphan", "scores", "rollout-r2-0"),
    }
    assert {one.repair for one in found} == {f"bagger register --to {uri}"}
    assert json.dumps([vars(one) for one in found])


def test_a_registry_knows_its_scores_entries_and_trainings(tiny_copy):
    uri = tiny_copy.root / "registry"
    register(Store(tiny_copy.store), uri, "one", rounds=["r1"])
    assert audit(Store(uri), decode=False) == []  # though it knows of the training of r2
    repair = f"bagger register --to {uri}"

    def broken(name, change):
        dataset = lance.dataset(str(uri / f"{name}.lance"))
        before = dataset.version
        change(dataset)
        found = audit(Store(uri), decode=False)
        lance.dataset(str(uri / f"{name}.lance"), version=before).restore()
        assert {one.repair for one in found} == {repair}
        return [(one.table, one.subject, one.seen.partition(":")[0]) for one in found]

    strange = "drift or gates of 2 entries is that of no score of their rollouts"
    assert broken("scores", lambda one: one.update({"drift": "99.0"})) == [("catalog", "one/r1/clip-r1-0", strange)]
    found = broken("catalog", lambda one: one.update({"drift": "99.0"}, where="round = 'r1'"))
    assert [subject for _, subject, _ in found] == ["one/r1", "one/r1/clip-r1-0"]
    found = broken("catalog", lambda one: one.update({"gates": "'black'"}, where="round = 'r0'"))
    assert [subject for _, subject, _ in found] == ["one/r0"]
    model = tiny_copy.models["r1"]
    found = broken("uses", lambda one: one.delete("clip_id = 'seed-0' AND round = 'r1'"))
    assert [(table, subject) for table, subject, _ in found] == [("uses", model)]
    assert "the plan has 12" in found[0][2]
    assert ("uses", model) in [one[:2] for one in broken("uses", lambda one: one.delete("round = 'r1'"))]


def test_experiments_that_measured_otherwise_are_both_right(tiny_copy, rows):
    uri = tiny_copy.root / "registry"
    register(Store(tiny_copy.store), uri, "one")
    measured = rows.scores("r2")
    measured[0]["drift"] = 0.7
    rows.seal(tiny_copy.root, "scores_r2", measured)
    build_catalog(tiny_copy.store, ["r1", "r2"], tiny_copy.runs, tiny_copy.files)
    register(Store(tiny_copy.store), uri, "two")
    assert audit(Store(uri), decode=False) == []

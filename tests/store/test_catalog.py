import json
import os
import shutil
from functools import partial

import hypothesis
import lance
import pytest
from hypothesis import strategies as st

from store import Store
from store.catalog import build_catalog, catalog_rounds, read_runs
from store.mapped import FILE, open_mapped
from store.schema import CATALOG, CLIPS, SCORES
from store.table import StoreError, content_manifest, open_table, read_manifest, table_names

SEEDS = {f"seed-{n}" for n in range(4)}
R1, R2 = ({f"clip-{name}-{n}" for n in range(2)} for name in ("r1", "r2"))


def test_a_tag_is_the_aggregated_data_set_after_its_round(tiny):
    found = {
        tag: set(open_table(tiny.store, "catalog", tag).to_table(columns=["clip_id"])["clip_id"].to_pylist())
        for tag in catalog_rounds(Store(tiny.store))
    }
    assert found == {"r0": SEEDS, "r1": SEEDS | R1, "r2": SEEDS | R1 | R2}
    assert list(found) == ["r0", "r1", "r2"]
    assert open_table(tiny.store, "catalog").count_rows() == 8


SCORED = [name for name in CATALOG.names if name in SCORES.names and name not in CLIPS.names]


def test_rows_join_clip_score_and_parents(tiny):
    table = open_table(tiny.store, "catalog").to_table()
    assert table.schema.equals(CATALOG, check_metadata=True)
    rows = {row["clip_id"]: row for row in table.to_pylist()}
    clip = rows["clip-r1-0"]
    assert (clip["drift"], clip["drift_motion"], clip["oracle_color_error"]) == pytest.approx((0.9, 0.1, 0.25))
    assert rows["clip-r1-1"]["drift"] == pytest.approx(0.6)
    assert rows["clip-r1-1"]["oracle_color_error"] is None
    assert (clip["drift_part"], clip["drift_parts"]) == ("over-saturating", "over-saturating,darkening")
    assert (clip["gates"], clip["drift_z"], clip["seam"]) == ("", 1.5, None)
    assert rows["clip-r1-1"]["drift_part"] == "none"
    assert (clip["round"], clip["table"], clip["was_generated_by"]) == ("r1", "clips_r1", "run-correct-r1")
    assert (clip["rollout_id"], clip["seed_clip_id"], clip["rewrite_id"]) == ("rollout-r1-0", "seed-0", "rewrite-0")
    seed = rows["seed-3"]
    assert (seed["round"], seed["split"], seed["table"], seed["drift"]) == ("r0", "heldout", "seed", None)
    assert {seed[name] for name in SCORED} == {None}


def test_rebuilding_gives_the_same_manifest_and_leaves_nothing_behind(tiny_copy):
    before = table_names(tiny_copy.store)
    assert build_catalog(tiny_copy.store, ["r0", "r1", "r2"], tiny_copy.runs[::-1]) == tiny_copy.manifest
    assert content_manifest(tiny_copy.store, "catalog") == tiny_copy.manifest
    assert table_names(tiny_copy.store) == before
    assert not (tiny_copy.store / ".sealing").exists()
    assert build_catalog(tiny_copy.store, ["r1"], []).rows == 6
    assert catalog_rounds(Store(tiny_copy.store)) == ["r0", "r1"]


def test_what_does_not_fit_together_is_named_and_the_old_catalog_stays(tiny_copy, rows):
    with pytest.raises(StoreError, match="dvc repro correct@r3"):
        build_catalog(tiny_copy.store, ["r1", "r2", "r3"], [])
    rows.seal(tiny_copy.root / "other", "scores_r1", rows.scores("r1")[:1])
    (tiny_copy.store / "scores_r1.lance").rename(tiny_copy.root / "aside")
    (tiny_copy.root / "other/store/scores_r1.lance").rename(tiny_copy.store / "scores_r1.lance")
    with pytest.raises(StoreError, match="clip-r1-1 comes from rollout-r1-1, which scores_r1 does not hold"):
        build_catalog(tiny_copy.store, ["r1", "r2"], [])
    with pytest.raises(StoreError, match="no column 'stag', did you mean 'stage'"):
        build_catalog(tiny_copy.store, ["r2"], [{**tiny_copy.runs[0], "run_id": "run-x", "stag": "mix"}])
    with pytest.raises(StoreError, match="run run-x: inputs is not JSON"):
        build_catalog(tiny_copy.store, ["r2"], [{**tiny_copy.runs[0], "run_id": "run-x", "inputs": "{"}])
    assert content_manifest(tiny_copy.store, "catalog") == tiny_copy.manifest


def test_verdicts_are_those_of_the_rewrites(tiny_copy, rows):
    """In order, joined by the rewrite's id and not by place; also those of rewrites that no clip has."""
    seen = (("parses", False), ("x", True), ("a", False))
    checks = [{"name": name, "pass": ok, "detail": "why"} for name, ok in seen]
    made = rows.rewrites("r2")
    made[1]["verdicts"] = json.dumps(checks)
    made.append(made[0] | {"rewrite_id": "rewrite-", "verdicts": json.dumps(checks)})
    rows.seal(tiny_copy.root / "other", "rewrites_r2", made[::-1])
    shutil.rmtree(tiny_copy.store / "rewrites_r2.lance")
    (tiny_copy.root / "other/store/rewrites_r2.lance").rename(tiny_copy.store / "rewrites_r2.lance")
    build_catalog(tiny_copy.store, ["r1", "r2"], tiny_copy.runs)
    found = open_table(tiny_copy.store, "catalog").to_table(columns=["clip_id", "verdict", "rewriter_kind"]).to_pylist()
    verdicts = {one["clip_id"]: (one["verdict"], one["rewriter_kind"]) for one in found if "r2" in one["clip_id"]}
    assert verdicts == {"clip-r2-0": ("passed", "toy-grammar"), "clip-r2-1": ("parses,a", "llm")}


def test_a_rewrite_that_is_not_there_or_cannot_be_read_is_named(tiny_copy, rows):
    made = rows.rewrites("r1")
    cases = (
        (made[1:], "clip-r1-0 has the prompt of rewrite-0, which rewrites_r1 .*`dvc repro rewrite@r1 correct@r1`"),
        ([one | {"verdicts": '[{"pass": true}, "x"]'} for one in made], "verdicts of rewrite-0 are no JSON list"),
        (None, "no table 'rewrites_r1'.*`dvc repro rewrite@r1`"),
    )
    for made, words in cases:
        shutil.rmtree(tiny_copy.store / "rewrites_r1.lance")
        shutil.rmtree(tiny_copy.root / "work")
        if made is not None:
            rows.seal(tiny_copy.root, "rewrites_r1", made)
        with pytest.raises(StoreError, match=words):
            build_catalog(tiny_copy.store, ["r1", "r2"], [])
        (tiny_copy.root / "work").mkdir(exist_ok=True)
    assert content_manifest(tiny_copy.store, "catalog") == tiny_copy.manifest


def test_runs_are_kept_with_their_json(tiny):
    runs = read_runs(Store(tiny.store))
    assert [one["run_id"] for one in runs] == [one["run_id"] for one in tiny.runs]
    assert runs[-1]["inputs"] == {"plan_digest": tiny.plans["r2"], "init_digest": tiny.models["base"]}


def sources(root, changed=()):
    """Digests from the manifests, some of them other ones."""
    digests = {path.stem: read_manifest(path).digest for path in (root / "manifests").glob("*.json")}
    return {name: f"not {one}" if name in changed else one for name, one in digests.items()}


def state(store):
    """All that a question can see: versions, their rows in order, what the tags say, the files beside."""
    catalog = open_table(store, "catalog")
    tags = catalog.tags.list()
    at = {tag: open_table(store, "catalog", tag).to_table().to_pylist() for tag in tags}
    parts = {tag: [one.count_rows() for one in open_table(store, "catalog", tag).get_fragments()] for tag in tags}
    metadata = {tag: tags[tag]["metadata"] for tag in tags}
    return catalog_rounds(Store(store)), at, parts, metadata, open_mapped(catalog) is not None


def data_files(store):
    return {path.name for path in (store / "catalog.lance/data").iterdir()}


@hypothesis.settings(max_examples=8, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(
    steps=st.lists(
        st.tuples(st.sampled_from([("r1", "r2"), ("r1",), ("r2",), ("r2", "r1"), ()]), st.booleans(), st.booleans()),
        min_size=2,
        max_size=3,
    )
)
def test_kept_rounds_give_what_a_full_rebuild_gives(tiny, tmp_path_factory, steps):
    root = tmp_path_factory.mktemp("steps")
    stores = [shutil.copytree(tiny.store, root / name) for name in ("kept", "full")]
    for rounds, changed, mapped in steps:
        digests = sources(tiny.root, ["scores_r2"] if changed else [])
        least = 1 if mapped else 1000
        manifests = [build_catalog(stores[0], rounds, tiny.runs, None, digests, least_mapped=least)]
        shutil.rmtree(stores[1] / "catalog.lance")
        manifests.append(build_catalog(stores[1], rounds, tiny.runs, None, digests, least_mapped=least))
        assert manifests[0] == manifests[1]
        assert state(stores[0]) == state(stores[1])
        versions = {one["version"] for one in open_table(stores[0], "catalog").versions()}
        assert versions == {one["version"] for one in open_table(stores[0], "catalog").tags.list().values()}
    shutil.rmtree(root)


def test_unchanged_rounds_are_not_read_again(tiny_copy):
    store, runs = tiny_copy.store, tiny_copy.runs
    build_catalog(store, ["r1"], runs, sources=sources(tiny_copy.root))
    first = data_files(store)
    for name in ("seed", "clips_r1", "rewrites_r1", "scores_r1"):
        (store / f"{name}.lance").rename(tiny_copy.root / name)
    assert build_catalog(store, ["r1", "r2"], runs, sources=sources(tiny_copy.root)) == tiny_copy.manifest
    assert first < data_files(store)
    assert build_catalog(store, ["r1", "r2"], runs, sources=sources(tiny_copy.root)) == tiny_copy.manifest
    with pytest.raises(StoreError, match="no table 'seed'"):
        build_catalog(store, ["r1", "r2"], runs, sources=sources(tiny_copy.root), full=True)
    for changed, table in (("scores_r1", "clips_r1"), ("rewrites_r1", "clips_r1"), ("seed", "seed")):
        with pytest.raises(StoreError, match=f"no table '{table}'"):
            build_catalog(store, ["r1", "r2"], runs, sources=sources(tiny_copy.root, [changed]))
    with pytest.raises(StoreError, match="no table 'seed'"):  # nothing is known of the sources: all are read
        build_catalog(store, ["r1", "r2"], runs)
    assert content_manifest(store, "catalog") == tiny_copy.manifest


def test_kept_files_are_never_written_into(tiny_copy, tmp_path):
    """As they lie in DVC's cache, under a second name."""
    store, digests = tiny_copy.store, sources(tiny_copy.root)
    build_catalog(store, ["r1", "r2"], tiny_copy.runs, sources=digests, least_mapped=1)
    cache = tmp_path / "cache"
    shutil.copytree(store / "catalog.lance", cache, copy_function=os.link)
    before = {path: path.read_bytes() for path in cache.rglob("*") if path.is_file()}
    for path in before:
        path.chmod(0o444)
    build_catalog(store, ["r1"], tiny_copy.runs, sources=digests, least_mapped=1)
    build_catalog(store, ["r1", "r2"], tiny_copy.runs, sources=digests, least_mapped=1)
    assert {path: path.read_bytes() for path in before} == before
    assert content_manifest(store, "catalog") == tiny_copy.manifest


def test_a_damaged_catalog_is_made_anew(tiny_copy):
    store, digests = tiny_copy.store, sources(tiny_copy.root)
    build_catalog(store, ["r1", "r2"], tiny_copy.runs, sources=digests)
    for path in (store / "catalog.lance/data").iterdir():
        path.write_bytes(path.read_bytes()[:-100])
    assert build_catalog(store, ["r1", "r2"], tiny_copy.runs, sources=digests) == tiny_copy.manifest
    shutil.rmtree(store / "catalog.lance/_versions")
    assert build_catalog(store, ["r1", "r2"], tiny_copy.runs, sources=digests) == tiny_copy.manifest


def test_rounds_stand_in_order_of_drift_and_the_mapped_rows_are_the_table(tiny_copy):
    build_catalog(tiny_copy.store, ["r1", "r2"], tiny_copy.runs, least_mapped=1)
    assert (tiny_copy.store / "catalog.lance" / FILE).exists()
    scalars = [name for name in CATALOG.names if name not in ("look", "words")]
    for tag, ids in (("r0", []), ("r1", ["clip-r1-0", "clip-r1-1"]), ("r2", ["clip-r2-0", "clip-r2-1"])):
        dataset = open_table(tiny_copy.store, "catalog", tag)
        mapped = open_mapped(dataset)
        assert mapped.sorted
        assert mapped.decoded(mapped.table).to_pylist() == dataset.to_table(columns=scalars).to_pylist()
        assert mapped.table["clip_id"].to_pylist()[len(mapped.table) - len(ids) :] == ids


def damaged(path) -> None:
    """Another value in a data file, where nothing but a digest would tell."""
    (largest,) = sorted(path.glob("data/*.lance"), key=lambda one: one.stat().st_size)[-1:]
    data = bytearray(largest.read_bytes())
    place = data.index(b"it's number 1") + len("it's number ")
    data[place : place + 1] = b"7"
    largest.unlink()  # it may be another's by a hard link
    largest.write_bytes(data)


def test_rows_that_are_not_those_that_were_written_are_not_kept(tiny_copy):
    build = partial(
        build_catalog, tiny_copy.store, ["r1", "r2"], tiny_copy.runs, tiny_copy.files, sources(tiny_copy.root)
    )
    want = build()
    damaged(tiny_copy.store / "catalog.lance")
    assert content_manifest(tiny_copy.store, "catalog") != want
    assert build() == want == content_manifest(tiny_copy.store, "catalog")


def test_a_catalog_that_cannot_be_read_now_is_not_thrown_away_before_there_is_another(tiny_copy, monkeypatch):
    """As when no file descriptor is left: a failed build leaves what was there."""

    def refuse(*_, **__):
        raise OSError("too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(lance.LanceDataset, "scanner", refuse)
        patch.setattr(lance.LanceDataset, "to_table", refuse)
        with pytest.raises(StoreError, match="too many open files"):
            build_catalog(tiny_copy.store, ["r1", "r2"], tiny_copy.runs, tiny_copy.files)
    assert content_manifest(tiny_copy.store, "catalog") == tiny_copy.manifest

"""`bagger mix`: what it tells of a plan before there is one, and of one that is there."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flows import mix
from flows.params import load_params
from store.catalog import build_catalog
from store.mixture import read_plan
from tests.flows.heldout import ROOT
from tests.flows.test_cli import LIGHT


@pytest.fixture
def project(tiny_copy, tmp_path, monkeypatch) -> Path:
    """A project's root with the tiny store, its manifests, and params of the smoke test; no plans, no catalog."""
    root = tmp_path / "project"
    root.mkdir()
    for name in ("store", "manifests"):
        shutil.copytree(tiny_copy.root / name, root / "data" / name)
    for name in ("catalog", "runs", "uses"):
        shutil.rmtree(root / "data" / "store" / f"{name}.lance")
    shutil.copyfile(ROOT / "tests" / "smoke.yaml", root / "params.yaml")
    monkeypatch.chdir(root)
    return root


def edit(old: str, new: str) -> None:
    text = Path("params.yaml").read_text()
    assert text.count(old) == 1
    Path("params.yaml").write_text(text.replace(old, new))


def test_a_round_is_told_before_its_plan_is_made(bagger, project):
    before = sorted(project.rglob("*"))
    told = bagger("mix", "r1")
    assert (told.status, told.err) == (0, "")
    assert told.out.splitlines() == [
        "r1: 8 samples, 50.00% corrective (asked for: 0.5; order: mixed)",
        "data/plans/r1.parquet is not there yet; `dvc repro mix@r1` makes it",
        "round  kind        samples  share  clips  of  least   mean  most  left out",
        "r0     seed              4    0.5      3   3      1  1.333     2  -",
        "r1     corrective        4    0.5      2   2      2      2     2  -",
        "",
        "drift of the corrective samples; 1 is what real clips do",
        "round  min  10 %  median  90 %  max  mean  unknown",
        "r1     0.6   0.6    0.75   0.9  0.9  0.75        0",
        "",
        " 0.5 to 1           4  ########################################",
    ]
    assert sorted(project.rglob("*")) == before, "nothing was written"
    assert bagger("mix", "r1", "--show").out == told.out


def test_the_histogram_counts_every_draw_and_leaves_no_gap(bagger, project, rows):
    scores = rows.scores("r1")
    scores[0]["drift"], scores[1]["drift"] = 100.0, 2.0
    rows.seal(project / "data", "scores_r1", scores)
    (found,) = json.loads(bagger("mix", "r1", "--json").out)
    assert [(one["from"], one["to"], one["samples"]) for one in found["histogram"]] == [
        (2, 4, 2), (4, 8, 0), (8, 16, 0), (16, 32, 0), (32, None, 2)
    ]  # fmt: skip
    lines = bagger("mix", "r1").out.splitlines()[-5:]
    assert lines[1] == "   4 to 8           0"
    assert lines[4] == f"  32 or more        2  {'#' * 40}"


def test_all_rounds_are_told_and_json_is_what_the_stage_writes(bagger, project):
    found = json.loads(bagger("mix", "--json").out)
    assert [(one["round"], one["asked"], one["file"]) for one in found] == [
        ("r0", 0.0, "absent"), ("r1", 0.5, "absent"), ("r2", "uniform", "absent")
    ]  # fmt: skip
    params = load_params()
    for one in found:
        mix.main(params, one["round"])
        written = json.loads(Path(f"data/plans/{one['round']}.json").read_text())
        assert {key: one[key] for key in ("plan_digest", "num_samples", "corrective", "rounds")} == {
            key: written[key] for key in ("plan_digest", "num_samples", "corrective", "rounds")
        }
        assert one["plan_digest"] == read_plan(Path(f"data/plans/{one['round']}.parquet"))[1]
    assert [one["file"] for one in json.loads(bagger("mix", "--json").out)] == ["same"] * 3


def test_a_plan_that_is_there_is_told_from_what_would_be_planned(bagger, project, rows):
    mix.main(load_params(), "r1")
    assert bagger("mix", "r1").out.splitlines()[1] == "data/plans/r1.parquet is this plan"
    edit("corrective: 0.5", "corrective: 0.25")
    assert bagger("mix", "r1").out.splitlines()[1] == (
        "data/plans/r1.parquet is another plan; `dvc repro mix@r1` makes this one"
    )
    edit("corrective: 0.25", "corrective: 0.5")
    clips = rows.clips("r1", "model-0")
    clips[0]["prompt"] = "another"
    rows.seal(project / "data", "clips_r1", clips)
    assert bagger("mix", "r1").out.splitlines()[1] == (
        "data/plans/r1.parquet is this plan, but was made when clips_r1 held something else; `dvc repro mix@r1`"
    )
    Path("data/plans/r1.parquet").write_bytes(b"PAR1")
    told = bagger("mix", "r1")
    assert (told.status, told.out) == (1, "")
    assert "error: plan data/plans/r1.parquet cannot be read" in told.err


@pytest.mark.parametrize(
    ("share", "asked", "samples"),
    [
        ("0.5", "0.5", {"r0": 4, "r1": 2, "r2": 2}),
        ("uniform", "uniform", {"r0": 3, "r1": 2, "r2": 3}),
        ("r1=0.125,r2=0.5", "r1 0.125, r2 0.5", {"r0": 3, "r1": 1, "r2": 4}),
        ("r2=1", "r2 1", {"r0": 0, "r1": 0, "r2": 8}),
    ],
)
def test_another_share_can_be_tried_without_changing_anything(bagger, project, share, asked, samples):
    mix.main(load_params(), "r2")
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    (found,) = json.loads(bagger("mix", "r2", "--corrective", share, "--json").out)
    assert {name: part["samples"] for name, part in found["rounds"].items()} == samples
    lines = bagger("mix", "r2", "--corrective", share).out.splitlines()
    assert f"(asked for: {asked}; order: mixed)" in lines[0]
    assert lines[1] == (
        "data/plans/r2.parquet is this plan"
        if share == "uniform"
        else "to have it, set rounds.r2.corrective in params.yaml, and `dvc repro mix@r2`"
    )
    assert {path: path.read_bytes() for path in project.rglob("*") if path.is_file()} == before
    written = f"{{{share.replace('=', ': ')}}}" if "=" in share else share
    edit("corrective: uniform", f"corrective: {written}")
    assert json.loads(bagger("mix", "r2", "--json").out)[0]["plan_digest"] == found["plan_digest"]


def test_a_share_is_tried_on_the_rounds_that_can_have_it(bagger, project):
    def rounds(share):
        return [one["round"] for one in json.loads(bagger("mix", "--corrective", share, "--json").out)]

    assert rounds("0.5") == rounds("r1=0.5") == ["r1", "r2"]
    assert rounds("r1=0.25,r2=0.25") == ["r2"]


def test_clips_that_are_left_out_are_counted_by_reason(bagger, project, rows):
    scores = rows.scores("r1")
    scores[0]["gates"] = "black"
    rows.seal(project / "data", "scores_r1", scores)
    edit("where: null", "where: drift < 0.3")
    (found,) = json.loads(bagger("mix", "r2", "--json").out)
    assert found["left_out"] == {"r1": {"gate": 1, "where": 1}, "r2": {"where": 1}}
    lines = [line.split() for line in bagger("mix", "r2").out.splitlines()]
    assert ["r1", "corrective", "0", "0", "0", "0", "0", "0", "0", "1", "by", "gate,", "1", "by", "where"] in lines
    assert next(line for line in lines if line[:2] == ["r2", "corrective"])[-3:] == ["1", "by", "where"]


def test_a_round_whose_clips_are_not_there_yet_names_what_makes_them(bagger, project):
    shutil.rmtree("data/store/clips_r2.lance")
    told = bagger("mix")
    assert told.status == 0
    assert told.err == "r2: there is no plan without clips_r2; make it with `dvc repro correct@r2`\n"
    assert [line[:3] for line in told.out.splitlines() if "asked for" in line] == ["r0:", "r1:"]
    shutil.rmtree("data/store/scores_r2.lance")
    told = bagger("mix", "r2")
    assert (told.status, told.out) == (1, "")
    assert told.err == (
        "error: r2: there is no plan without clips_r2, scores_r2; make them with `dvc repro correct@r2 score@r2`\n"
    )
    shutil.rmtree("data")
    told = bagger("mix", "--json")
    assert (told.status, told.out) == (0, "[]\n")
    assert "r0: there is no plan without seed; make it with `dvc repro seed`" in told.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["r9"], "no round 'r9' in params.yaml; it has r0, r1, r2"),
        (["r1", "--corrective", "much"], "--corrective 'much': expected a number from 0 to 1, or uniform, or shares"),
        (["r1", "--corrective", "1.5"], "--corrective '1.5': expected a number from 0 to 1"),
        (["r1", "--corrective", "nan"], "--corrective 'nan': expected a number from 0 to 1"),
        (["r1", "--corrective", "r1=0.1,r1=0.2"], "--corrective 'r1=0.1,r1=0.2': expected"),
        (["r1", "--corrective", "r2=0.1"], "r1: --corrective: found round 'r2'; expected rounds up to this one: r1"),
        (["r2", "--corrective", "r1=0.6,r2=0.6"], "1.2 in all; expected at most 1"),
        (["r0", "--corrective", "0.1"], "r0 trains on seed clips alone"),
    ],
)
def test_a_mistake_is_one_line_and_status_1(bagger, project, arguments, said):
    told = bagger("mix", *arguments)
    assert (told.status, told.out) == (1, "")
    assert told.err.startswith("error: ")
    assert told.err.count("\n") == 1
    assert said in told.err


def test_a_plan_that_cannot_be_says_of_which_round_and_what_would_do(bagger, project):
    edit("max_repeats: null", "max_repeats: 3")
    told = bagger("mix")
    assert (told.status, told.out) == (1, "")
    assert told.err == (
        "error: r0: max_repeats = 3: the plan needs 12 of its 12 samples from seed clips; there are 3, which give 9. "
        "What would do: max_repeats of 4, or fewer steps\n"
    )
    edit("where: null", "where: drfit > 2")
    assert "error: mixture: where 'drfit > 2': no column 'drfit', did you mean 'drift'" in bagger("mix", "r1").err


def test_it_needs_no_catalog_and_one_that_is_there_changes_nothing(bagger, project):
    before = bagger("mix").out
    build_catalog(project / "data" / "store", ["r1", "r2"], [])
    assert bagger("mix").out == before


def test_nothing_heavy_is_imported(project):
    for arguments in (["mix"], ["mix", "r2", "--corrective", "0.5", "--json"], ["mix", "--help"]):
        told = subprocess.run(
            [sys.executable, "-c", LIGHT, *arguments], cwd=project, capture_output=True, text=True, timeout=60
        )
        assert (told.returncode, told.stderr) == (0, "")


def test_help_teaches(bagger):
    told = bagger("mix", "--help").out
    assert "Examples:\n    bagger mix" in told
    assert "bagger mix r2 --corrective 0.3" in told
    assert max(map(len, told.splitlines())) <= 110

"""The comparison counts and compares as it says, shares what arms share, and goes on where it was stopped."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from benchmarks import comparison
from benchmarks.comparison_arms import ARMS, SCALES, Arm, Scale, chain, chosen, learns, rollout_units, training_units
from benchmarks.comparison_report import (
    Results,
    at_cost,
    crossed,
    fill_findings,
    gather,
    merge,
    partners,
    read,
    report,
)
from benchmarks.comparison_world import STYLES, binned, prompt_digests
from model.training import TrainSettings, step_loss

TINY = Scale("tiny", steps=3, rollouts=2, clips=4, prompts=2, long_prompts=1, real_clips=3, lengths=(1, 2), batch=2)
PROMPTS = dict(zip(STYLES, "abac", strict=True))


def test_units_are_the_tokens_that_go_through_the_transformer(monkeypatch):
    """Counted by the forwards that a step and a rollout really make."""
    import torch

    from benchmarks.comparison_world import BASE
    from model import objectives, resampling, rollout
    from model.causal import causal_forward, causalize
    from model.pipeline import load_pipeline
    from model.training import Batch

    transformer = causalize(load_pipeline(BASE).transformer)
    seen = []

    def counted(model, latents, *args, **kwargs):
        seen.append((latents.shape[0] * latents.shape[2] * 16, torch.is_grad_enabled()))
        return causal_forward(model, latents, *args, **kwargs)

    for module in (objectives, resampling, rollout):
        monkeypatch.setattr(module, "causal_forward", counted)
    latents, text = torch.zeros(1, 8, 14, 8, 8), torch.zeros(1, 32, 64)
    batch = Batch(["a"], latents, text, [0])
    for objective in (
        learns("diffusion_forcing"), learns("teacher_forcing"), learns("resampling_forcing"),
        learns("resampling_forcing", parallel=True), learns("resampling_forcing", resampling_steps=2),
    ):  # fmt: skip
        seen.clear()
        for step in range(2):  # the first of which is the warm-up
            step_loss(transformer, batch, step, TrainSettings(num_steps=2, objective=objective))
        found = sum(3 * tokens if grad else tokens for tokens, grad in seen)
        assert found == training_units(objective, 2, 1), objective
    seen.clear()
    settings = rollout.RolloutSettings(2, window_chunks=6)
    list(rollout.rollout(transformer, latents[:, :, :2], text, 2, settings, [0]))
    assert sum(tokens for tokens, _ in seen) == rollout_units(1, 3)


def test_arms_share_what_they_begin_with():
    bagger, marked, longer, again = (
        chain(ARMS[name], 0, TINY, PROMPTS) for name in ("bagger", "bagger_marker", "bagger_long_last", "bagger")
    )
    df = chain(ARMS["df"], 0, TINY, PROMPTS)
    assert [p.id for p in bagger.pieces] == [p.id for p in again.pieces]
    assert df.pieces[0].id == bagger.pieces[0].id
    assert [p.kind for p in bagger.pieces[:5]] == ["train", "rollouts", "clips", "train", "evaluation"]
    shared = {p.id for p in bagger.pieces} & {p.id for p in marked.pieces}
    assert {p.kind for p in bagger.pieces if p.id in shared} == {"train", "rollouts", "clips"}
    assert len(shared) == 3  # the first model, its rollouts and their clips
    assert {p.id for p in bagger.pieces} & {p.id for p in longer.pieces} == {df.pieces[0].id}
    inverted = chain(replace(ARMS["bagger"], prompts="inverted"), 0, TINY, PROMPTS)
    assert [p.id for p in inverted.pieces] == [p.id for p in bagger.pieces]  # words that are the same are one work
    assert {p.id for p in chain(ARMS["bagger"], 1, TINY, PROMPTS).pieces}.isdisjoint(p.id for p in bagger.pieces)
    known: set[str] = set()
    for piece in bagger.pieces:
        assert known.issuperset(piece.parents)
        known.add(piece.id)
    assert [len(behind) for _, _, behind in bagger.evaluations] == [4, 7, 10]


def test_styles_of_the_toy_grammar():
    found = prompt_digests(TINY, 14)
    assert found["auto"] == found["inverted"]
    assert len(set(found.values())) == 3


def test_sets_name_what_there_is():
    assert [arm.name for arm in chosen("main", [])][:2] == ["real", "df"]
    assert [arm.name for arm in chosen(None, ["bagger", "df"])] == ["df", "bagger"]
    assert {arm.against for arm in ARMS.values()} <= ARMS.keys()
    with pytest.raises(ValueError, match="unknown arm nobody"):
        chosen("main", ["nobody"])


def test_crossed_bootstrap_covers_what_seeds_and_what_prompts_vary_in():
    rng = np.random.default_rng(0)
    assert crossed(np.full((3, 8), 2.0), "constant") == crossed(np.full((3, 8), 2.0), "other")
    by_prompt = np.tile(rng.normal(0, 1, 64), (3, 1))
    one = crossed(by_prompt, "prompts")
    assert one.high - one.low == pytest.approx(2 * 1.96 * by_prompt[0].std() / 8, rel=0.15)
    by_seed = np.tile(rng.normal(0, 1, (16, 1)), (1, 64))
    two = crossed(by_seed, "seeds")
    assert two.high - two.low == pytest.approx(2 * 1.96 * by_seed[:, 0].std() / 4, rel=0.15)
    some = by_prompt.copy()
    some[:, :60] = np.nan
    assert crossed(some, "known").mean == pytest.approx(by_prompt[0, 60:].mean())
    assert np.isnan(crossed(np.full((2, 2), np.nan), "nothing").mean)


def test_controls_are_read_off_at_equal_cost():
    ladder = np.array([4.0, 3.0, 1.0])[:, None, None] * np.ones((3, 1, 2))
    assert at_cost(2, [1, 2, 8], ladder).tolist() == [[3, 3]]
    assert at_cost(4, [1, 2, 8], ladder) == pytest.approx(np.full((1, 2), 2.0))  # half way on a logarithmic scale
    assert at_cost(1, [1, 2, 8], ladder).tolist() == [[4, 4]]
    assert at_cost(9, [1, 2, 8], ladder) is None


def test_curves_are_means_of_what_is_known():
    curves = np.array([[1, 3, np.nan, 1, np.nan, np.nan, np.nan, np.nan, 9], [1] * 4 + [np.nan] * 4 + [9]])
    assert binned(curves) == [pytest.approx(9 / 7), None]


def test_an_arm_from_nothing_to_the_report(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(comparison, "STATE", tmp_path)
    monkeypatch.setitem(SCALES, "tiny", TINY)
    arm = Arm("bagger", "one round", "main", rounds=1)
    monkeypatch.setitem(ARMS, "bagger", arm)
    command = ["--arms", "real,df,bagger", "--seeds", "0", "--scale", "tiny"]
    assert comparison.main(["run", *command, "--workers", "0"]) == 0
    assert "[7/7]" in capsys.readouterr().out
    (folder,) = tmp_path.iterdir()
    files = sorted((folder / "pieces").iterdir())
    before = {path: path.stat().st_mtime_ns for path in files}
    for path in files:  # what is missing is made again, and nothing else
        if path.name.startswith("clips"):
            content = load_file(path)
            path.unlink()
            missing = path
    assert comparison.main(["run", *command, "--workers", "0"]) == 0
    assert all(np.array_equal(array, content[name]) for name, array in load_file(missing).items())
    assert {p: p.stat().st_mtime_ns for p in files if p != missing} == {p: t for p, t in before.items() if p != missing}

    chains = comparison.chains_of(None, ["real", "df", "bagger"], [0], TINY)
    rows, costs, _, _ = gather(chains, folder)
    assert len(rows) == 3 * (TINY.prompts + TINY.long_prompts)
    results = Results(rows, costs)
    to_base, own = partners(results)
    assert to_base == {("bagger", 1): ("df", 0)}
    assert own == {}
    first = training_units(learns("diffusion_forcing"), TINY.steps, TINY.batch)
    assert results.units(("bagger", 1)) == 2 * first + rollout_units(TINY.rollouts, 7)
    tables, images = tmp_path / "tables", tmp_path / "images"
    report(chains, folder, TINY, tables, images)
    written = (tables / "comparison.md").read_text()
    assert "| bagger r1 | df |" in written
    kept = (tables / "comparison.csv").read_bytes()
    report(chains, tmp_path / "gone", TINY, tables, images)  # from the tables alone
    assert (tables / "comparison.md").read_text() == written
    assert (tables / "comparison.csv").read_bytes() == kept
    assert {path.name for path in images.iterdir()} == {
        f"comparison_{name}.png" for name in ("compute", "curves", "differences", "frames")
    }


def test_a_failed_piece_is_told_and_stops_what_needs_it_alone(tmp_path, monkeypatch, capsys):
    pieces = comparison.plan([chain(ARMS[name], 0, TINY, PROMPTS) for name in ("df", "bagger")])
    done = []

    class Fails:
        def do(self, piece):
            if piece.kind == "rollouts":
                raise RuntimeError("no numbers")
            done.append(piece.kind)

    monkeypatch.setattr(comparison, "_start", lambda *_: setattr(comparison, "_world", Fails()))
    errors = comparison.run(pieces, tmp_path, TINY, workers=0)
    assert sorted(done) == ["evaluation", "train"]
    assert len(errors) == len(pieces) - 2
    assert sum("no numbers" in error for error in errors.values()) == 1
    assert "no numbers" in capsys.readouterr().err


def test_merging_replaces_a_seed_and_leaves_others(tmp_path):
    def row(seed, drift, state="a"):
        return {"state": state, "arm": "df", "round": 0, "seed": seed, "length": 1, "prompt": 0, "drift": drift}

    columns = ("state", "arm", "round", "seed", "length", "prompt", "drift")
    path = tmp_path / "rows.csv"
    merge(path, [row(0, 1.0), row(1, 2.0)], columns)
    assert [one["drift"] for one in merge(path, [row(1, 3.0)], columns)] == [1.0, 3.0]
    assert [one["drift"] for one in merge(path, [], columns)] == [1.0, 3.0]
    assert [one["drift"] for one in merge(path, [row(0, 5.0, "b")], columns)] == [5.0]


def test_the_findings_say_what_was_measured(tmp_path):
    """The tables of docs/findings.md are those of the kept rollouts; they stand between marks and are renewed there."""
    root = Path(__file__).parents[2]
    kept = [read(root / "benchmarks/results" / name) for name in ("comparison.csv", "comparison_costs.csv")]
    written = (root / "docs/findings.md").read_text()
    page = tmp_path / "findings.md"
    page.write_text(re.sub(r"(<!-- TABLE .+? -->).*?(<!-- end -->)", r"\1old\2", written, flags=re.DOTALL))
    fill_findings(Results(*kept), page)
    assert page.read_text() == written

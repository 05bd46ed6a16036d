"""params.yaml: what the shipped file says, and what each mistake is told."""

import re
from pathlib import Path

import pytest

from flows.params import ParamsError, Section, load_params, set_rounds

SHIPPED = Path(__file__).parents[2] / "params.yaml"


@pytest.fixture
def edited(tmp_path):
    """Writes the shipped file with one piece of text replaced."""

    def edit(old: str, new: str) -> Path:
        text = SHIPPED.read_text()
        assert old in text
        path = tmp_path / "params.yaml"
        path.write_text(text.replace(old, new, 1))
        return path

    return edit


def test_shipped_file_has_a_comment_on_every_knob():
    lines = SHIPPED.read_text().splitlines()
    plain = {"batch_size:", "lr:", "weight_decay:"}  # said once, or said by the name
    knobs = [line for line in lines if re.match(r"  \w+: \S", line) and "{" not in line]
    assert len(knobs) > 40
    assert not [line for line in knobs if "#" not in line and line.split()[0] not in plain]


def test_values_are_frozen():
    params = load_params(SHIPPED)
    with pytest.raises(ValueError, match="frozen"):
        params.train.steps = 1
    assert isinstance(params.train, Section)


def test_round_is_defaults_overlaid_by_its_own_keys(edited):
    params = load_params(edited("r2: {prev: r1}", "r2: {prev: r1, corrective: uniform, lr: 0.25}"))
    first, second = params.round("r1"), params.round("r2")
    assert (first.prev, second.prev) == ("r0", "r1")
    assert first.corrective == params.round_defaults.corrective
    assert second.corrective == "uniform"
    assert second.train.lr == 0.25
    assert first.train.lr == params.round_defaults.lr
    assert second.train.ema == params.train.ema  # neither says: train holds
    assert params.train_of("r0") == params.train


def test_round_without_training_keys_takes_those_of_train(edited):
    path = edited("  lr: 0.001\n", "")
    assert load_params(path).round("r1").train.lr == load_params(path).train.lr


def test_int_where_float_is_meant_is_the_same_value(edited):
    value = load_params(edited("fps: 8 ", "fps: 8.0 ")).video
    assert value == load_params(SHIPPED).video
    assert repr(load_params(SHIPPED).video.model_dump()["fps"]) == "8.0"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  steps: 1200", "  stesp: 1200", "train.stesp: unknown key (value 1200); did you mean train.steps?"),
        ("  steps: 1200", "  stesp: 1200", "train.steps: missing"),
        ("text:\n", "texts:\n", "did you mean text?"),
        ("lr: 0.002", "lr: '0.002'", "train.lr: found '0.002'; expected a valid number"),
        ("lr: 0.002", "lr: true", "train.lr: found True; expected a valid number"),
        ("lr: 0.002", "lr: .nan", "train.lr: found nan; expected a finite number"),
        ("lr: 0.002", "lr: -1", "train.lr: found -1; expected greater than 0"),
        ("steps: 1200", "steps: 1200.0", "train.steps: found 1200.0; expected a valid integer"),
        ("corrective: 0.5", "corrective: 1.5", "round_defaults.corrective: found 1.5; expected a number from 0 to 1"),
        ("corrective: 0.5", "corrective: unifrom", "found 'unifrom'; expected a number from 0 to 1, or 'uniform'"),
        ("init: base", "init: scratch", "found 'scratch'; expected 'base' or 'previous'"),
        ("timestep: uniform", "timestep: normal", "found 'normal'; expected 'uniform' or 'logit_normal'"),
        ("device: auto", "device: gpu", "resources.device: found 'gpu'; expected auto, cpu, cuda"),
        ("prefix_chunks: 4", "prefix_chunks: 7", "train.prefix_chunks: found 7; expected less than clip.num_chunks"),
        ("r2: {prev: r1}", "r2: {prev: r0}", "rounds.r2.prev: found 'r0'; expected 'r1'"),
        ("r2: {prev: r1}", "r5: {prev: r1}", "found r1, r3, r5; expected r1, r2, r3"),
        ("r2: {prev: r1}", "r2: {}", "rounds.r2.prev: missing"),
        ("r2: {prev: r1}", "r2: 5", "rounds.r2: found 5; expected a mapping with prev"),
        ("r2: {prev: r1}", "r2: {prev: r1, colective: 3}", "did you mean rounds.r2.corrective?"),
        ("r2: {prev: r1}", "r2: {prev: r1, prefix_chunks: 9}", "rounds.r2.prefix_chunks: found 9; expected less than"),
        ("r2: {prev: r1}", "r1: {prev: r1}", 'found duplicate key "r1"'),
        ("r2: {prev: r1}", "r2: &same {prev: r1}", "anchors and aliases"),
        ("text:\n", "text: [\n", "line "),
    ],
)
def test_mistake_is_named(edited, old, new, message):
    with pytest.raises(ParamsError) as caught:
        load_params(edited(old, new))
    assert message in str(caught.value)
    assert "params.yaml: " in str(caught.value)


def test_all_mistakes_are_named_at_once(edited):
    with pytest.raises(ParamsError) as caught:
        load_params(edited("lr: 0.002", "lr: no\n  warmpu: 3"))
    assert "train.lr" in str(caught.value)
    assert "did you mean train.warmup?" in str(caught.value)


def test_missing_file_and_unknown_round():
    with pytest.raises(ParamsError, match="no such file"):
        load_params("nowhere/params.yaml")
    with pytest.raises(ParamsError, match="rounds has no 'r9'; it has r1, r2, r3"):
        load_params(SHIPPED).round("r9")


def test_set_rounds_keeps_overrides_comments_and_the_rest(edited):
    path = edited("r2: {prev: r1}", "r2: {prev: r1, corrective: 0.25}")
    before = path.read_text()
    assert set_rounds(5, path) == ["r1", "r2", "r3", "r4", "r5"]
    added = "  r3: {prev: r2}\n  r4: {prev: r3}\n  r5: {prev: r4}\n"
    assert path.read_text() == before.replace("  r3: {prev: r2}\n", added)
    assert load_params(path).round("r2").corrective == 0.25
    set_rounds(3, path)
    assert path.read_text() == before


def test_set_rounds_leaves_a_bad_file_alone(edited):
    path = edited("lr: 0.002", "lr: -1")
    before = path.read_text()
    with pytest.raises(ParamsError, match="lr"):
        set_rounds(5, path)
    assert path.read_text() == before
    assert [file.name for file in path.parent.iterdir()] == ["params.yaml"]
    with pytest.raises(ParamsError, match="expected 1 or more"):
        set_rounds(0, path)

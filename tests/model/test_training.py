"""Training: its formulas, what it refuses, and that a run killed anywhere ends in the same bits."""

import copy
import itertools
import json
import math
import os
from dataclasses import replace

import pytest
import torch

from model import checkpoint
from model.causal import causalize
from model.objectives import NAMES, Objective
from model.rng import torch_generator
from model.training import (
    Batch,
    TrainingError,
    TrainingStopped,
    TrainSettings,
    ema_decay_at,
    learning_rate_at,
    step_loss,
    train,
)

BAGGER = Objective("bagger", chunk_latents=3)
SETTINGS = TrainSettings(
    num_steps=6, objective=BAGGER, warmup_steps=2, checkpoint_every=2, log_every=1, text_dropout=0.3
)
EMPTY = torch.zeros(6, 12)


def batch(step):
    generator = torch_generator("data", step)
    latents = torch.randn(2, 4, 9, 4, 4, generator=generator)
    return Batch([f"seed-{step}", f"clip-{step}"], latents, torch.randn(2, 6, 12, generator=generator), [0, 2])


def batches(start):
    return map(batch, itertools.count(start))


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def uninterrupted(transformer):
    model = copy.deepcopy(transformer)
    metrics = train(model, batches, SETTINGS, empty_text_SD=EMPTY)
    return weights(model), metrics


def test_learning_rate_warms_up_and_follows_half_a_cosine():
    settings = TrainSettings(num_steps=110, warmup_steps=10, learning_rate=1.0, final_learning_rate=0.2)
    assert [learning_rate_at(step, settings) for step in (0, 4, 9, 10)] == [0.1, 0.5, 1.0, 1.0]
    assert learning_rate_at(60, settings) == pytest.approx(0.6)
    assert learning_rate_at(35, settings) == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.sqrt(0.5)))
    assert learning_rate_at(110, settings) == pytest.approx(0.2)


def test_the_returned_weights_are_the_average_of_the_steps(transformer, tmp_path):
    name = "proj_out.weight"
    average = transformer.state_dict()[name].clone()
    settings = replace(SETTINGS, checkpoint_every=1)
    trail = {}
    train(
        transformer,
        batches,
        settings,
        tmp_path,
        lambda m: trail.update({m[-1]["step"]: checkpoint.latest(tmp_path)}),
        empty_text_SD=EMPTY,
    )
    trail[7] = checkpoint.latest(tmp_path)  # progress runs before its step is saved: trail[k + 1] is step k
    for step in range(6):
        decay = min(0.995, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * trail[step + 2].tensors[f"model/{name}"]
    assert torch.allclose(average, transformer.state_dict()[name], atol=1e-6)
    assert not torch.equal(average, trail[7].tensors[f"model/{name}"])
    assert ema_decay_at(10**6, 0.995) == 0.995


def test_it_learns(transformer):
    settings = replace(SETTINGS, num_steps=60, warmup_steps=5, learning_rate=5e-3, ema_decay=0.9, text_dropout=0.0)
    metrics = train(transformer, lambda start: itertools.repeat(batch(0)), settings)
    losses = [m["loss"] for m in metrics]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    assert list(metrics[0]) == [
        "step", "loss", "loss_seed", "loss_corrective", "grad_norm", "learning_rate", "seconds", "wait",
    ]  # fmt: skip
    assert metrics[0]["loss"] == pytest.approx((metrics[0]["loss_seed"] + metrics[0]["loss_corrective"]) / 2)
    assert not transformer.training


@pytest.mark.parametrize("killed_in_step", [1, 3, 5])
def test_a_killed_run_ends_in_the_same_bits(transformer, uninterrupted, tmp_path, killed_in_step):
    def killed(start):
        for step in itertools.count(start):
            if step == killed_in_step:
                raise KeyboardInterrupt
            yield batch(step)

    with pytest.raises(KeyboardInterrupt):
        train(copy.deepcopy(transformer), killed, SETTINGS, tmp_path, empty_text_SD=EMPTY)
    torch.manual_seed(killed_in_step)  # global state is not part of a run
    model, asked = copy.deepcopy(transformer), []
    metrics = train(model, lambda k: asked.append(k) or batches(k), SETTINGS, tmp_path, empty_text_SD=EMPTY)
    assert asked == [killed_in_step // 2 * 2]
    assert equal(weights(model), uninterrupted[0])
    losses = [(m["step"], m["loss"], m["grad_norm"]) for m in uninterrupted[1]]
    assert [(m["step"], m["loss"], m["grad_norm"]) for m in metrics] == losses


def test_asked_to_stop_it_saves_and_goes_on_later(transformer, uninterrupted, tmp_path):
    polls = itertools.count(1)
    with pytest.raises(TrainingStopped, match="after step 3 of 6"):
        train(
            copy.deepcopy(transformer), batches, SETTINGS, tmp_path, empty_text_SD=EMPTY, stop=lambda: next(polls) == 3
        )
    assert checkpoint.latest(tmp_path).step == 3
    model = copy.deepcopy(transformer)
    train(model, batches, SETTINGS, tmp_path, empty_text_SD=EMPTY)
    assert equal(weights(model), uninterrupted[0])


def test_samples_are_of_the_average_and_change_nothing(transformer, uninterrupted, tmp_path):
    model, seen = copy.deepcopy(transformer), {}
    name = "proj_out.weight"

    def sample(step):
        assert not model.training
        seen[step] = model.state_dict()[name].clone()

    train(model, batches, replace(SETTINGS, sample_every=2), tmp_path, empty_text_SD=EMPTY, sample=sample)
    assert equal(weights(model), uninterrupted[0])
    assert sorted(seen) == [2, 4]  # the last step's are the result itself
    assert torch.equal(seen[4], checkpoint.load(tmp_path / "step-00000004").tensors[f"ema/{name}"])


@pytest.mark.parametrize("size", [1, 2, 3])
def test_parts_of_a_batch_add_up(transformer, uninterrupted, size):
    model = copy.deepcopy(transformer)
    metrics = train(model, batches, replace(SETTINGS, micro_batch=size), empty_text_SD=EMPTY)
    assert [m["loss"] for m in metrics] == pytest.approx([m["loss"] for m in uninterrupted[1]], rel=1e-4)
    assert [m["grad_norm"] for m in metrics] == pytest.approx([m["grad_norm"] for m in uninterrupted[1]], rel=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_every_objective_learns(transformer, name):
    objective = replace(BAGGER, name=name, resampling_warmup=0.2)
    settings = replace(SETTINGS, objective=objective, num_steps=50, warmup_steps=3, learning_rate=5e-3, ema_decay=0.9,
                       text_dropout=0.0)  # fmt: skip
    metrics = train(transformer, lambda start: itertools.repeat(batch(0)), settings)
    losses = [m["loss"] for m in metrics]
    assert sum(losses[-6:]) < 0.8 * sum(losses[:6])


def test_half_precision_is_close_and_keeps_float_weights(transformer):
    first, second = (replace(SETTINGS, precision=name, num_steps=3) for name in ("float32", "bfloat16"))
    exact = train(copy.deepcopy(transformer), batches, first, empty_text_SD=EMPTY)
    model = copy.deepcopy(transformer)
    half = train(model, batches, second, empty_text_SD=EMPTY)
    assert [m["loss"] for m in half] == pytest.approx([m["loss"] for m in exact], rel=0.02)
    assert half[0]["loss"] != exact[0]["loss"]
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_gradient_checkpointing_changes_nothing_but_memory(transformer, uninterrupted):
    for name in ("bagger", "resampling_forcing"):
        settings = replace(SETTINGS, objective=replace(BAGGER, name=name, resampling_warmup=0.0))
        plain, checkpointed = (
            train(
                copy.deepcopy(transformer), batches, replace(settings, gradient_checkpointing=one), empty_text_SD=EMPTY
            )
            for one in (False, True)
        )
        assert [m["grad_norm"] for m in plain] == pytest.approx([m["grad_norm"] for m in checkpointed], rel=1e-5)


def test_data_that_ends_too_early_is_an_error(transformer):
    with pytest.raises(TrainingError, match="step 4: the data ends here, 6 steps were asked for"):
        train(transformer, lambda start: map(batch, range(3)), SETTINGS, empty_text_SD=EMPTY)


def test_killed_while_writing_it_falls_back_a_checkpoint(transformer, uninterrupted, tmp_path, monkeypatch):
    original, count = os.replace, []

    def replace_until_killed(source, target):
        count.append(target)
        if len(count) == 2:
            raise KeyboardInterrupt
        return original(source, target)

    monkeypatch.setattr(os, "replace", replace_until_killed)
    with pytest.raises(KeyboardInterrupt):
        train(copy.deepcopy(transformer), batches, SETTINGS, tmp_path, empty_text_SD=EMPTY)
    monkeypatch.undo()
    assert checkpoint.latest(tmp_path).step == 2
    assert list(tmp_path.glob(".writing-*"))
    model = copy.deepcopy(transformer)
    train(model, batches, SETTINGS, tmp_path, empty_text_SD=EMPTY)
    assert equal(weights(model), uninterrupted[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000004", "step-00000006"]


def test_a_damaged_checkpoint_is_passed_over(transformer, uninterrupted, tmp_path):
    train(copy.deepcopy(transformer), batches, SETTINGS, tmp_path, empty_text_SD=EMPTY)
    tensors = tmp_path / "step-00000006" / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-100])
    assert checkpoint.latest(tmp_path).step == 4
    model = copy.deepcopy(transformer)
    train(model, batches, SETTINGS, tmp_path, empty_text_SD=EMPTY)
    assert equal(weights(model), uninterrupted[0])
    # a finished run does nothing more, and its record is plain JSON
    train(model, lambda start: pytest.fail(f"step {start} again"), SETTINGS, tmp_path, empty_text_SD=EMPTY)
    assert json.loads((tmp_path / "step-00000006" / "state.json").read_text())["step"] == 6


def test_checkpoints_of_other_settings_are_refused(transformer, tmp_path):
    train(copy.deepcopy(transformer), batches, SETTINGS, tmp_path, empty_text_SD=EMPTY)
    with pytest.raises(TrainingError, match=r"weight_decay: 0.01 there, 0.1 now.*rm -r"):
        train(transformer, batches, replace(SETTINGS, weight_decay=0.1), tmp_path, empty_text_SD=EMPTY)
    other = replace(SETTINGS, objective=replace(BAGGER, shift=1.0))
    with pytest.raises(TrainingError, match=r"objective\.shift: 3.0 there, 1.0 now"):
        train(transformer, batches, other, tmp_path, empty_text_SD=EMPTY)


def test_a_non_finite_loss_names_the_clips(transformer):
    def poisoned(start):
        for step in itertools.count(start):
            made = batch(step)
            if step == 1:
                made.latents_BCFhw[1, 0, 0, 0, 0] = float("nan")
            yield made

    with pytest.raises(TrainingError, match="step 2.*not finite for clip-1; clips of this batch: seed-1, clip-1"):
        train(transformer, poisoned, SETTINGS, empty_text_SD=EMPTY)


def test_randomness_is_named_by_seed_and_step(transformer):
    causalize(transformer)
    plain = replace(SETTINGS, text_dropout=0.0)
    with torch.no_grad():
        rows = step_loss(transformer, batch(0), 3, plain)
        torch.manual_seed(5)
        assert torch.equal(rows, step_loss(transformer, batch(0), 3, plain))
        assert not torch.equal(rows, step_loss(transformer, batch(0), 4, plain))
        assert not torch.equal(rows, step_loss(transformer, batch(0), 3, replace(plain, seed=1)))


def test_dropped_text_is_the_empty_prompt(transformer):
    causalize(transformer)
    one = batch(0)
    empty = replace(one, text_BSD=EMPTY.expand(2, -1, -1))
    with torch.no_grad():
        dropped = step_loss(transformer, one, 0, replace(SETTINGS, text_dropout=1.0), EMPTY)
        assert torch.equal(dropped, step_loss(transformer, empty, 0, replace(SETTINGS, text_dropout=0.0)))
    with pytest.raises(TrainingError, match="empty_text_SD"):
        step_loss(transformer, batch(0), 0, SETTINGS)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="must be equally many"):
        Batch(["a"], torch.zeros(2, 4, 9, 4, 4), torch.zeros(2, 6, 12), [0, 0])
    with pytest.raises(ValueError, match="text_dropout"):
        TrainSettings(num_steps=1, text_dropout=2)

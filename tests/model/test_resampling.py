"""Self-resampling against its equation, against teacher forcing at one end and a rollout at the other."""

import pytest
import torch

from model.causal import causal_forward, causalize
from model.masks import Chunks, Context, teacher_forcing_mask
from model.noising import noise
from model.resampling import resample
from model.rng import torch_generator
from model.rollout import RolloutSettings, chunk_noise, rollout


@pytest.fixture
def case(transformer, inputs):
    """A causal transformer, clean latents [2, 4, 9, 4, 4] in 3 chunks, text, eps, t_s [2]."""
    latents, _, text = inputs
    eps = torch.randn(latents.shape, generator=torch_generator("eps"))
    return causalize(transformer), latents, text, eps, torch.tensor([0.3, 0.7])


def one_velocity(model, history, noisy, level, text, context):
    """v of every noisy chunk that sees `history` before it: one masked pass, without a cache."""
    F = history.shape[2]
    sigmas = torch.cat([torch.zeros(2, F), level[:, None].expand(-1, F)], dim=1)
    mask = teacher_forcing_mask(F, Chunks(3), context)
    both = torch.cat([history, noisy], dim=2)
    return causal_forward(model, both, sigmas, text, positions_F=[*range(F)] * 2, mask=mask)[:, :, F:]


def close(a, b):
    return bool((a - b).abs().max() <= 1e-5 * b.abs().max())


def test_at_level_0_the_clip_comes_back_to_the_bit(case):
    model, clean, text, eps, _ = case
    for parallel in (False, True):
        assert torch.equal(resample(model, clean, text, eps, torch.zeros(2), 3, parallel=parallel), clean)


@torch.no_grad()
@pytest.mark.parametrize("context", [Context(), Context(1), Context(1, 1), Context(None, 0, 1)])
@pytest.mark.parametrize("num_steps", [1, 2])
def test_autoregressive_resampling_is_algorithm_1(case, context, num_steps):
    """x~^i = x^i_{t_s} - t_s v(x^i_{t_s}, t_s, x~^{<i}), chunk after chunk, by whole masked passes."""
    model, clean, text, eps, level = case
    made, start = clean.clone(), noise(clean, eps, level[:, None].expand(-1, 9))
    for chunk in range(3):
        run, x = slice(3 * chunk, 3 * chunk + 3), start.clone()
        for step in range(num_steps):
            now = level * (num_steps - step) / num_steps
            v = one_velocity(model, made, x, now, text, context)
            x = x - (level / num_steps)[:, None, None, None, None] * v
        made[:, :, run] = x[:, :, run]
    assert close(resample(model, clean, text, eps, level, 3, num_steps=num_steps, context=context), made)


@torch.no_grad()
def test_parallel_resampling_sees_clean_history(case):
    model, clean, text, eps, level = case
    start = noise(clean, eps, level[:, None].expand(-1, 9))
    made = start - level[:, None, None, None, None] * one_velocity(model, clean, start, level, text, Context(1))
    parallel = resample(model, clean, text, eps, level, 3, parallel=True, context=Context(1))
    assert close(parallel, made)
    # the first chunk has no history, so both variants agree there and nowhere else
    serial = resample(model, clean, text, eps, level, 3, context=Context(1))
    assert close(serial[:, :, :3], parallel[:, :, :3])
    assert not close(serial[:, :, 3:6], parallel[:, :, 3:6])


def test_errors_pile_up_in_the_autoregressive_variant_alone(case):
    model, clean, text, eps, level = case
    other = eps.clone()
    other[:, :, :3] += 1  # the first chunk comes out otherwise
    for parallel in (False, True):
        first, second = (resample(model, clean, text, e, level, 3, parallel=parallel) for e in (eps, other))
        assert not torch.equal(first[:, :, :3], second[:, :, :3])
        assert torch.equal(first[:, :, 3:], second[:, :, 3:]) == parallel


def test_at_level_1_it_is_a_rollout(case):
    model, clean, text, _, _ = case
    seeds, settings = [5, 6], RolloutSettings(chunk_latents=3, num_steps=4, shift=1.0, window_chunks=1)
    eps = torch.cat([chunk_noise(seeds, chunk, (4, 3, 4, 4)) for chunk in range(3)], dim=2)
    ours = resample(model, clean, text, eps, torch.ones(2), 3, num_steps=4, context=settings.context)
    theirs = torch.cat(list(rollout(model, clean[:, :, :0], text, 3, settings, seeds)), dim=2)
    assert close(ours, theirs)
    # and from a true first chunk, as this project rolls out
    kept = resample(
        model, clean, text, eps, torch.ones(2), 3, kept_chunks_B=torch.tensor([1, 1]), num_steps=4,
        context=settings.context,
    )  # fmt: skip
    given = torch.cat([clean[:, :, :3], *rollout(model, clean[:, :, :3], text, 2, settings, seeds)], dim=2)
    assert close(kept, given)


def test_kept_chunks_stay_clean_and_are_seen_so(case):
    model, clean, text, eps, level = case
    other = eps.clone()
    other[0, :, :6] = 50.0  # row 0 keeps these, row 1 keeps none
    first, second = (
        resample(model, clean, text, e, level, 3, kept_chunks_B=torch.tensor([2, 0])) for e in (eps, other)
    )
    assert torch.equal(first[0, :, :6], clean[0, :, :6])
    assert not torch.equal(first[1, :, :6], clean[1, :, :6])
    assert torch.equal(first, second)


def test_nothing_is_left_behind(case):
    model, clean, text, eps, level = case
    model.train()
    with torch.enable_grad():
        made = resample(model, clean.requires_grad_(), text, eps, level, 3)
    assert not made.requires_grad
    assert model.training
    assert all(block.attn1.processor.slot is None for block in model.blocks)

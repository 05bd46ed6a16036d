"""Rollouts: the sampler's arithmetic, the cache against full recomputation, batches against single prompts."""

import pytest
import torch

from model.causal import causal_forward, causalize
from model.masks import ChunkMask, Chunks, Context
from model.rollout import RolloutError, RolloutSettings, chunk_noise, euler_sigmas, rollout

SEEDS = [11, 12]


def test_euler_sigmas_are_the_shifted_line():
    assert torch.equal(euler_sigmas(4, 1.0), torch.tensor([1, 0.75, 0.5, 0.25, 0]))
    # Self-Forcing's warped schedule 1000, 937.5, 833.3, 625
    assert torch.allclose(euler_sigmas(4, 5.0) * 1000, torch.tensor([1000, 937.5, 2500 / 3, 625, 0]))


def test_noise_depends_on_seed_and_chunk_alone():
    noise = chunk_noise(SEEDS, 4, (4, 3, 2, 2))
    assert torch.equal(noise[1], chunk_noise([12], 4, (4, 3, 2, 2))[0])
    assert not torch.equal(noise[0], noise[1])
    assert not torch.equal(noise[0], chunk_noise([11], 5, (4, 3, 2, 2))[0])


@pytest.mark.parametrize("window", [None, 1])
def test_rollout_is_euler_over_full_recomputation(transformer, inputs, window):
    latents, _, text = inputs
    causalize(transformer)
    settings = RolloutSettings(chunk_latents=3, num_steps=2, shift=3.0, window_chunks=window)
    prefix = latents[:, :, :6]
    chunks = list(rollout(transformer, prefix, text, 2, settings, SEEDS))
    assert [chunk.shape for chunk in chunks] == [(2, 4, 3, 4, 4)] * 2

    sigmas, clip = euler_sigmas(2, 3.0), prefix
    for index in (2, 3):  # no cache: the whole clip again in every step, past clean, under the mask
        x = chunk_noise(SEEDS, index, (4, 3, 4, 4))
        for step in range(2):
            whole = torch.cat([clip, x], dim=2)
            F = whole.shape[2]
            levels = torch.zeros(2, F)
            levels[:, -3:] = sigmas[step]
            mask = ChunkMask(F, Chunks(3), Context(window))
            with torch.no_grad():
                v = causal_forward(transformer, whole, levels, text, positions_F=range(F), mask=mask)
            x = x + (sigmas[step + 1] - sigmas[step]) * v[:, :, -3:]
        clip = torch.cat([clip, x], dim=2)
    assert torch.allclose(torch.cat(chunks, dim=2), clip[:, :, 6:], atol=1e-4)


def test_a_batch_is_its_prompts_one_by_one_and_longer_begins_like_shorter(transformer, inputs):
    latents, _, text = inputs
    causalize(transformer)
    settings, prefix = RolloutSettings(num_steps=3, window_chunks=2), latents[:, :, :3]
    together = torch.cat(list(rollout(transformer, prefix, text, 3, settings, SEEDS)), dim=2)
    for b in range(2):
        one = slice(b, b + 1)
        alone = torch.cat(list(rollout(transformer, prefix[one], text[one], 3, settings, SEEDS[one])), dim=2)
        assert torch.allclose(together[one], alone, atol=1e-5)
    shorter = torch.cat(list(rollout(transformer, prefix, text, 1, settings, SEEDS)), dim=2)
    assert torch.equal(together[:, :, :3], shorter)
    assert not torch.allclose(together[0], together[1], atol=0.1)


def test_it_runs_past_the_rotary_table_and_without_gradients(transformer, inputs):
    latents, _, text = inputs
    causalize(transformer).train()
    settings = RolloutSettings(chunk_latents=3, num_steps=1, window_chunks=1)
    last = None
    for last in rollout(transformer, latents[:1, :, :3], text[:1], 345, settings, [1]):  # 1038 latent frames
        assert not last.requires_grad
    assert last is not None
    assert torch.isfinite(last).all()
    assert torch.is_grad_enabled()


def test_everything_can_be_generated_without_a_prefix(transformer, inputs):
    latents, _, text = inputs
    chunks = list(rollout(causalize(transformer), latents[:, :, :0], text, 2, RolloutSettings(num_steps=1), SEEDS))
    assert len(chunks) == 2


def test_mistakes_are_named(transformer, inputs):
    latents, _, text = inputs
    causalize(transformer)
    with pytest.raises(ValueError, match="4 latent frames"):
        next(rollout(transformer, latents[:, :, :4], text, 1, RolloutSettings(), SEEDS))
    with pytest.raises(ValueError, match="seeds 1"):
        next(rollout(transformer, latents[:, :, :3], text, 1, RolloutSettings(), [1]))
    with pytest.raises(ValueError, match="num_steps"):
        RolloutSettings(num_steps=0)


def test_a_model_that_breaks_down_is_a_user_error_naming_chunk_and_seeds(transformer, inputs):
    latents, _, text = inputs
    text[1] = float("nan")
    chunks = rollout(causalize(transformer), latents[:, :, :3], text, 2, RolloutSettings(num_steps=1), SEEDS)
    with pytest.raises(RolloutError, match=r"chunk 1 is not finite \(seeds 12\)"):
        next(chunks)
    assert issubclass(RolloutError, ValueError)

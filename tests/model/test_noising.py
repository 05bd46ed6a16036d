"""The path between data and noise, and how its levels are drawn."""

import pytest
import torch
from diffusers import FlowMapEulerDiscreteScheduler

from model.noising import noise, per_frame, sample_sigmas
from model.rng import torch_generator


def test_noise_is_the_schedulers_straight_path(inputs):
    latents, sigmas, _ = inputs
    eps = torch.randn(latents.shape, generator=torch_generator("eps"))
    ours = noise(latents, eps, sigmas)
    theirs = FlowMapEulerDiscreteScheduler().scale_noise(latents.transpose(1, 2), sigmas * 1000, eps.transpose(1, 2))
    assert torch.allclose(ours, theirs.transpose(1, 2), atol=1e-5)
    assert torch.equal(noise(latents, eps, sigmas * 0), latents)


def test_what_holds_for_a_chunk_holds_for_its_frames():
    assert per_frame(torch.tensor([[1, 2], [3, 4]]), 6).tolist() == [[1, 1, 1, 2, 2, 2], [3, 3, 3, 4, 4, 4]]


@pytest.mark.parametrize("density", ["uniform", "logit_normal"])
def test_sigmas_have_the_density_and_shift(density):
    plain = sample_sigmas(10_000, torch_generator("s"), density)
    assert plain.median().item() == pytest.approx(0.5, abs=0.02)
    middle = ((plain > 0.25) & (plain < 0.75)).float().mean().item()
    assert middle == pytest.approx(0.5 if density == "uniform" else 0.728, abs=0.02)
    shifted = sample_sigmas(10_000, torch_generator("s"), density, shift=3.0)
    assert torch.allclose(shifted, 3 * plain / (1 + 2 * plain))
    with pytest.raises(ValueError, match="density"):
        sample_sigmas(1, torch_generator("s"), "cosine")  # type: ignore[arg-type]


def test_the_levels_of_resampling_are_the_papers():
    """2512.15702 with s = 0.6: a logit-normal of mean ln 0.6, so the quartiles are 0.234, 0.375 and 0.541."""
    levels = sample_sigmas(20_000, torch_generator("t_s"), "logit_normal", 0.6)
    found = levels.quantile(torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9]))
    assert torch.allclose(found, torch.tensor([0.143, 0.234, 0.375, 0.541, 0.684]), atol=0.01)
    assert levels.logit().mean().item() == pytest.approx(torch.tensor(0.6).log().item(), abs=0.02)

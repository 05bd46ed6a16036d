"""Losses against their equations, and what a clean prefix must and must not do."""

import pytest
import torch
from diffusers import FlowMapEulerDiscreteScheduler

from model.causal import causal_forward, causalize
from model.masks import ChunkMask, Chunks, Context
from model.objectives import bagger, diffusion_forcing, noise, sample_sigmas
from model.rng import torch_generator


@pytest.fixture
def case(transformer, inputs):
    """A causal transformer, clean latents, text, eps, sigmas [2, 3]."""
    latents, sigmas, text = inputs
    eps = torch.randn(latents.shape, generator=torch_generator("eps"))
    return causalize(transformer), latents, text, eps, sigmas[:, ::3]


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def test_noise_is_the_schedulers_straight_path(inputs):
    latents, sigmas, _ = inputs
    eps = torch.randn(latents.shape, generator=torch_generator("eps"))
    ours = noise(latents, eps, sigmas)
    theirs = FlowMapEulerDiscreteScheduler().scale_noise(latents.transpose(1, 2), sigmas * 1000, eps.transpose(1, 2))
    assert torch.allclose(ours, theirs.transpose(1, 2), atol=1e-5)
    assert torch.equal(noise(latents, eps, sigmas * 0), latents)


@pytest.mark.parametrize(("density", "median"), [("uniform", 0.5), ("logit_normal", 0.5)])
def test_sigmas_have_the_density_and_shift(density, median):
    plain = sample_sigmas(2000, 5, torch_generator("s"), density)
    assert plain.shape == (2000, 5)
    assert plain.median().item() == pytest.approx(median, abs=0.02)
    middle = ((plain > 0.25) & (plain < 0.75)).float().mean().item()
    assert middle == pytest.approx(0.5 if density == "uniform" else 0.728, abs=0.02)
    shifted = sample_sigmas(2000, 5, torch_generator("s"), density, shift=3.0)
    assert torch.allclose(shifted, 3 * plain / (1 + 2 * plain))
    with pytest.raises(ValueError, match="density"):
        sample_sigmas(1, 1, torch_generator("s"), "cosine")  # type: ignore[arg-type]


def test_diffusion_forcing_is_its_equation(case):
    model, clean, text, eps, sigmas = case
    levels = sigmas.repeat_interleave(3, dim=1)
    mask = ChunkMask(9, Chunks(3), Context(1))
    v = causal_forward(model, noise(clean, eps, levels), levels, text, positions_F=range(9), mask=mask)
    expected = (v - (eps - clean)).square().mean(dim=(1, 2, 3, 4))
    assert torch.allclose(diffusion_forcing(model, clean, text, eps, sigmas, context=Context(1)), expected)


def test_sink_window_and_routing_are_learned_with(case):
    model, clean, text, eps, sigmas = case

    def learn(context):
        model.zero_grad()
        loss = diffusion_forcing(model, clean, text, eps, sigmas, context=context).sum()
        loss.backward()
        return loss.detach(), model.blocks[0].attn1.to_k.weight.grad.clone()

    dense, everything = learn(Context()), learn(Context(routed_chunks=2))
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(dense, everything, strict=True))
    for context in (Context(1), Context(0, 1), Context(routed_chunks=1)):
        other = learn(context)
        assert torch.isfinite(other[1]).all()
        assert not torch.allclose(other[1], dense[1], rtol=1e-3)
    assert torch.allclose(learn(Context(1, 1))[0], dense[0])  # of three chunks, sink and window are all


def test_prefix_noise_and_targets_are_not_learned(case):
    model, clean, text, eps, sigmas = case
    prefix = torch.tensor([2, 0])
    rows = bagger(model, clean, text, eps, sigmas, prefix)
    before = gradients(model, rows.sum())
    other_eps, other_sigmas = eps.clone(), sigmas.clone()
    other_eps[0, :, :6] = 77.0  # eps enters the prefix's input (times sigma 0) and its target: neither may count
    other_sigmas[0, :2] = 0.9
    again = bagger(model, clean, text, other_eps, other_sigmas, prefix)
    assert torch.equal(rows, again)
    assert torch.equal(before, gradients(model, again.sum()))
    # the prefix is seen, though: as context it changes the loss
    other_clean = clean.clone()
    other_clean[0, :, :6] += 1
    assert not torch.allclose(rows[0], bagger(model, other_clean, text, eps, sigmas, prefix)[0])
    # and the seed row has no prefix
    other_eps[1, :, :3] += 1
    assert not torch.allclose(rows[1], bagger(model, clean, text, other_eps, sigmas, prefix)[1])


def test_output_gradient_is_zero_on_the_prefix_and_rows_weigh_the_same(case):
    model, clean, text, eps, sigmas = case
    outputs = []
    model.register_forward_hook(lambda *args: outputs.append(args[2][0]))
    clean, eps = clean[:1].repeat(2, 1, 1, 1, 1), eps[:1].repeat(2, 1, 1, 1, 1)
    rows = bagger(model, clean, text, eps, sigmas, torch.tensor([2, 0]))
    outputs[0].retain_grad()
    rows.mean().backward()
    grad = outputs[0].grad.reshape(2, 9, -1)  # frames are folded into the batch
    assert torch.count_nonzero(grad[0, :6]) == 0
    assert torch.count_nonzero(grad[0, 6:]) > 0
    assert torch.count_nonzero(grad[1, :3]) > 0
    # per supervised value, the corrective row with 3 of 9 frames pulls three times as hard
    error = outputs[0].detach().reshape(2, 9, -1) - (eps - clean).transpose(1, 2).reshape(2, 9, -1)
    ratio = grad[:, 6:] / error[:, 6:]
    assert torch.allclose(ratio[0] / ratio[1], torch.tensor(3.0), rtol=1e-3)


def test_rows_without_supervision_are_refused(case):
    model, clean, text, eps, sigmas = case
    with pytest.raises(ValueError, match=r"0\.\.2"):
        bagger(model, clean, text, eps, sigmas, torch.tensor([3, 0]))
    with pytest.raises(ValueError, match="4 equal chunks"):
        diffusion_forcing(model, clean, text, eps, torch.rand(2, 4))

"""Losses against their equations, and what a clean prefix must and must not do."""

from dataclasses import replace

import pytest
import torch

from model.causal import causal_forward, causalize
from model.masks import ChunkMask, Chunks, Context, teacher_forcing_mask
from model.noising import noise
from model.objectives import (
    NAMES,
    Objective,
    bagger,
    diffusion_forcing,
    noise_augmentation,
    resampling_forcing,
    teacher_forcing,
)
from model.resampling import resample
from model.rng import torch_generator

NONE = torch.zeros(2, dtype=torch.long)


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


def test_noise_on_the_prefix_is_told_and_not_learned(case):
    model, clean, text, eps, sigmas = case
    prefix, levels = torch.tensor([2, 0]), torch.full((2, 3), 0.4)
    rows = bagger(model, clean, text, eps, sigmas, prefix, prefix_sigmas_BK=levels)
    told = torch.tensor([[0.4, 0.4, sigmas[0, 2]], sigmas[1].tolist()]).repeat_interleave(3, dim=1)
    mask = ChunkMask(9, Chunks(3))
    v = causal_forward(model, noise(clean, eps, told), told, text, positions_F=range(9), mask=mask)
    error = (v - (eps - clean)).square()
    assert torch.allclose(rows, torch.stack([error[0, :, 6:].mean(), error[1].mean()]))
    clean_prefix = bagger(model, clean, text, eps, sigmas, prefix)
    assert not torch.allclose(rows[0], clean_prefix[0])
    assert torch.allclose(rows[1], clean_prefix[1])


def test_teacher_forcing_is_its_equation_chunk_by_chunk(case):
    """Every noisy chunk by itself after the clean chunks before it, block-causally, without the rest of the clip."""
    model, clean, text, eps, sigmas = case
    rows = teacher_forcing(model, clean, text, eps, sigmas, torch.tensor([0, 1]), context=Context(1))
    errors = []
    for chunk in range(3):
        run = slice(3 * chunk, 3 * chunk + 3)
        level = sigmas[:, chunk : chunk + 1].expand(-1, 3)
        noisy = noise(clean[:, :, run], eps[:, :, run], level)
        seen = torch.cat([clean[:, :, : run.start], noisy], dim=2)
        levels = torch.cat([torch.zeros(2, run.start), level], dim=1)
        mask = ChunkMask(run.stop, Chunks(3), Context(1))
        v = causal_forward(model, seen, levels, text, positions_F=range(run.stop), mask=mask)
        errors.append((v[:, :, -3:] - (eps - clean)[:, :, run]).square().mean(dim=(1, 2, 3, 4)))
    expected = torch.stack([(errors[0] + errors[1] + errors[2])[0] / 3, (errors[1] + errors[2])[1] / 2])
    assert torch.allclose(rows, expected, rtol=1e-4)


def test_masks_leak_nothing_into_teacher_forcing(case):
    """The error of noisy chunk i depends on its own noisy chunk, and on history before it: on nothing else."""
    model, clean, text, eps, sigmas = case
    for chunk in range(3):
        only = torch.full((2,), chunk)  # its loss and later ones; later ones are taken off
        history, noise_in = clean.clone().requires_grad_(), eps.clone().requires_grad_()
        F = 9
        both = torch.cat([history, noise(clean, noise_in, sigmas.repeat_interleave(3, 1))], dim=2)
        levels = torch.cat([torch.zeros(2, F), sigmas.repeat_interleave(3, 1)], dim=1)
        mask = teacher_forcing_mask(F, Chunks(3))
        v = causal_forward(model, both, levels, text, positions_F=[*range(F)] * 2, mask=mask)[:, :, F:]
        v[:, :, 3 * chunk : 3 * chunk + 3].square().sum().backward()
        seen = [bool(history.grad[:, :, 3 * j : 3 * j + 3].any()) for j in range(3)]
        own = [bool(noise_in.grad[:, :, 3 * j : 3 * j + 3].any()) for j in range(3)]
        assert seen == [j < chunk for j in range(3)]
        assert own == [j == chunk for j in range(3)]
        # and in the objective itself: other noise elsewhere leaves the loss after a prefix of `chunk` chunks alone
        other = eps.clone()
        other[:, :, : 3 * chunk] = 9.0
        given = (model, clean, text)
        assert torch.equal(
            teacher_forcing(*given, eps, sigmas, only), teacher_forcing(*given, other, sigmas, only)
        )  # fmt: skip


def test_resampling_from_level_0_is_teacher_forcing(case):
    model, clean, text, eps, sigmas = case
    history_eps = torch.randn(clean.shape, generator=torch_generator("history"))
    plain = teacher_forcing(model, clean, text, eps, sigmas, NONE)
    before = gradients(model, plain.sum())
    for parallel in (False, True):
        rows = resampling_forcing(
            model, clean, text, eps, sigmas, NONE, history_eps_BCFhw=history_eps, history_sigma_B=torch.zeros(2),
            parallel=parallel,
        )  # fmt: skip
        assert torch.equal(rows, plain)
        assert torch.equal(gradients(model, rows.sum()), before)
    nearly = resampling_forcing(
        model, clean, text, eps, sigmas, NONE, history_eps_BCFhw=history_eps, history_sigma_B=torch.full((2,), 1e-4)
    )
    assert torch.allclose(nearly, plain, rtol=1e-3)


def test_resampling_forcing_is_its_equation(case):
    """Clean targets, resampled history, and a gradient that stops at the resampling (2512.15702, algorithm 1)."""
    model, clean, text, eps, sigmas = case
    drawn = {"history_eps_BCFhw": torch.randn(clean.shape, generator=torch_generator("h")),
             "history_sigma_B": torch.tensor([0.3, 0.6])}  # fmt: skip
    rows = resampling_forcing(model, clean, text, eps, sigmas, NONE, **drawn, context=Context(1))
    found = gradients(model, rows.sum())
    history = resample(model, clean, text, *drawn.values(), 3, context=Context(1))
    assert not torch.allclose(history, clean)
    expected = teacher_forcing(model, clean, text, eps, sigmas, NONE, history_BCFhw=history, context=Context(1))
    assert torch.equal(rows, expected)
    assert torch.equal(found, gradients(model, expected.sum()))


def test_a_corrective_prefix_is_not_resampled(case):
    """Its loss is that after the prefix, and the prefix is the history as it is: drifted already."""
    model, clean, text, eps, sigmas = case
    drawn = {"history_eps_BCFhw": torch.full_like(eps, 3.0), "history_sigma_B": torch.tensor([0.9, 0.9])}
    prefix = torch.tensor([2, 2])  # of 3 chunks: the last one sees nothing resampled
    rows = resampling_forcing(model, clean, text, eps, sigmas, prefix, **drawn)
    assert torch.equal(rows, teacher_forcing(model, clean, text, eps, sigmas, prefix))


def test_noise_augmentation_noises_history_and_does_not_tell(case):
    model, clean, text, eps, sigmas = case
    other = torch.randn(clean.shape, generator=torch_generator("h"))
    none = noise_augmentation(
        model, clean, text, eps, sigmas, NONE, history_eps_BCFhw=other, history_sigmas_BK=torch.zeros(2, 3)
    )
    assert torch.equal(none, teacher_forcing(model, clean, text, eps, sigmas, NONE))
    levels = torch.tensor([[0.1, 0.2, 0.3], [0.0, 0.1, 0.0]])
    rows = noise_augmentation(model, clean, text, eps, sigmas, NONE, history_eps_BCFhw=other, history_sigmas_BK=levels)
    history = noise(clean, other, levels.repeat_interleave(3, 1))
    assert torch.equal(rows, teacher_forcing(model, clean, text, eps, sigmas, NONE, history_BCFhw=history))


# ---- objectives by name


def named(name, **knobs):
    return Objective(name, chunk_latents=3, **knobs)


def streams(rows, step=0):
    return lambda use: [torch_generator("test", step, row, use) for row in rows]


def rows_of(model, objective, clean, text, prefix, rows=(0, 1), progress=1.0):
    with torch.no_grad():
        return objective.rows(model, clean, text, torch.tensor(prefix), streams(rows), progress)


@pytest.mark.parametrize("name", NAMES)
def test_a_rows_noise_is_its_own(case, name):
    """The same row alone, in another place of the batch, or in another process: the same loss."""
    model, clean, text, _, _ = case
    objective = named(name, prefix_sigma=0.5, history_sigma=0.3)
    both = rows_of(model, objective, clean, text, [1, 0])
    for row in (0, 1):
        one = slice(row, row + 1)
        alone = rows_of(model, objective, clean[one], text[one], [[1, 0][row]], rows=(row,))
        assert torch.allclose(alone[0], both[row], rtol=1e-4)
    assert not torch.allclose(rows_of(model, objective, clean, text, [1, 0], rows=(2, 3)), both)


def test_only_diffusion_forcing_ignores_the_prefix(case):
    model, clean, text, _, _ = case
    for name in NAMES:
        plain, masked = (rows_of(model, named(name), clean, text, prefix) for prefix in ([0, 0], [2, 0]))
        assert torch.equal(plain[0], masked[0]) == (name == "diffusion_forcing")
        assert torch.allclose(plain[1], masked[1], rtol=1e-5)
    of_seed = [rows_of(model, named(name), clean, text, [0, 0]) for name in ("bagger", "diffusion_forcing")]
    assert torch.equal(*of_seed)


def test_resampling_warms_up_as_teacher_forcing_and_then_switches(case):
    model, clean, text, _, _ = case
    teacher = rows_of(model, named("teacher_forcing"), clean, text, [0, 0])
    objective = named("resampling_forcing", resampling_warmup=0.4)
    assert torch.equal(rows_of(model, objective, clean, text, [0, 0], progress=0.39), teacher)
    after = rows_of(model, objective, clean, text, [0, 0], progress=0.4)
    assert not torch.allclose(after, teacher)
    assert not torch.allclose(rows_of(model, replace(objective, parallel=True), clean, text, [0, 0]), after)


@pytest.mark.parametrize("name", ["noise_augmentation", "corrupted_history"])
def test_a_history_without_strength_is_clean(case, name):
    model, clean, text, _, _ = case
    teacher = rows_of(model, named("teacher_forcing"), clean, text, [0, 0])
    assert torch.equal(rows_of(model, named(name, history_sigma=0.0), clean, text, [0, 0]), teacher)
    assert not torch.allclose(rows_of(model, named(name, history_sigma=0.5), clean, text, [0, 0]), teacher)


@pytest.mark.parametrize("name", NAMES)
def test_every_objective_routes_its_history(case, name):
    model, clean, text, _, _ = case
    dense, routed = (
        rows_of(model, named(name, context=Context(routed_chunks=k)), clean, text, [0, 0]) for k in (None, 1)
    )
    assert torch.isfinite(routed).all()
    assert not torch.allclose(dense, routed, rtol=1e-6)


def test_settings_that_cannot_be_are_named():
    for field, value in (("name", "bager"), ("prefix_sigma", 2.0), ("history_sigma", -0.1), ("shift", 0.0),
                         ("resampling_warmup", 1.5), ("density", "cosine")):  # fmt: skip
        with pytest.raises(ValueError, match="bager" if field == "name" else field):
            Objective(**{field: value})

"""Rollouts: the sampler's arithmetic, the cache against full recomputation, batches against single prompts."""

import gc
from itertools import pairwise

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanTransformer3DModel

from model.causal import causal_forward, causalize, new_cache
from model.masks import ChunkMask, Chunks, Context
from model.rollout import (
    Past,
    RolloutError,
    RolloutSettings,
    chunk_noise,
    context_positions,
    euler_sigmas,
    rollout,
)

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


def by_full_passes(transformer, prefix, texts, num_chunks, settings, seeds, negative=None):
    """The same rollout without a cache: in every step the whole clip again, under the mask, for every branch.

    The context is clean or noised once a chunk; only what a static mask can say (no travelling sink, no recomputation).
    """
    B, C, F, h, w = prefix.shape
    chunks, clip = settings.chunks, prefix

    def velocity(x, start, sigma, text, context_sigma):
        whole, levels = torch.cat([clip, x], dim=2), torch.full((B, start + x.shape[2]), context_sigma)
        for index, (a, b) in enumerate(chunks.runs(start)):
            eps = chunk_noise(seeds, index, (C, b - a, h, w), "context")
            whole[:, :, a:b] = (1 - context_sigma) * whole[:, :, a:b] + context_sigma * eps
        levels[:, start:] = sigma
        mask = ChunkMask(whole.shape[2], chunks, settings.context)
        v = causal_forward(transformer, whole, levels, text, positions_F=range(whole.shape[2]), mask=mask)
        return v[:, :, start:]

    levels = settings.noise_levels()
    for index in range(chunks.count(F), chunks.count(F) + num_chunks):
        start, stop = chunks.run(index)
        x = chunk_noise(seeds, index, (C, stop - start, h, w))
        for sigma, next_sigma in pairwise(levels):
            guided = v = velocity(x, start, sigma, texts, settings.context_sigma)
            if settings.guidance != 1:
                without = velocity(x, start, sigma, negative, settings.context_sigma)
                guided = guided + (settings.guidance - 1) * (v - without)
            if settings.history_guidance != 1:
                without = velocity(x, start, sigma, texts, settings.history_sigma)
                guided = guided + (settings.history_guidance - 1) * (v - without)
            x = x + (next_sigma - sigma) * guided
        clip = torch.cat([clip, x], dim=2)
    return clip[:, :, F:]


VARIANTS = {
    "plain": {},
    "window": {"window_chunks": 1},
    "window and sink": {"window_chunks": 1, "sink_chunks": 1},
    "no past at all": {"window_chunks": 0},
    "chunks of 1": {"chunk_latents": 1},
    "independent first chunk": {"first_chunk_latents": 1, "chunk_latents": 2},
    "few steps": {"sigmas": (1.0, 0.5), "shift": 5.0},
    "noise on the context": {"context_sigma": 0.2},
    "guidance": {"guidance": 3.0},
    "history guidance": {"history_guidance": 2.0, "window_chunks": 1},
    "fractional history guidance": {"history_guidance": 2.0, "history_sigma": 0.5, "context_sigma": 0.1},
    "everything": {"guidance": 2.0, "history_guidance": 1.5, "window_chunks": 2, "sink_chunks": 1, "chunk_latents": 2},
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_a_cached_rollout_is_euler_over_full_passes(transformer, inputs, variant):
    latents, _, text = inputs
    causalize(transformer)
    settings = RolloutSettings(**{"chunk_latents": 3, "num_steps": 2, **variant})
    prefix = latents[:, :, : settings.chunks.run(1)[1]]
    with torch.no_grad():
        arguments = transformer, prefix, text, 2, settings, SEEDS
        chunks = list(rollout(*arguments, negative_text_BSD=-text))
        expected = by_full_passes(*arguments, negative=-text)
    ours = torch.cat(chunks, dim=2)
    assert ours.shape == expected.shape
    assert (ours - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_few_step_schedules_are_diffusers():
    levels = RolloutSettings(num_steps=4, sigmas=(1.0, 0.75, 0.5, 0.25), shift=5.0).noise_levels()
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    assert torch.allclose(torch.tensor(levels), scheduler.sigmas)


def test_renoising_steps_from_the_clean_estimate(transformer, inputs):
    latents, _, text = inputs
    settings = RolloutSettings(num_steps=2, sigmas=(1.0, 0.5), renoise=True)
    (ours,) = rollout(causalize(transformer), latents[:, :, :0], text, 1, settings, SEEDS)
    x, (_, middle, _) = chunk_noise(SEEDS, 0, (4, 3, 4, 4)), settings.noise_levels()

    def clean(x, sigma):
        levels = torch.full((2, 3), sigma)
        return x - sigma * causal_forward(transformer, x, levels, text, positions_F=range(3))

    with torch.no_grad():
        x = (1 - middle) * clean(x, 1.0) + middle * chunk_noise(SEEDS, 0, (4, 3, 4, 4), "step", 0)
        assert torch.allclose(ours, clean(x, middle), atol=1e-5)


@pytest.mark.parametrize("window", [1, 2])
def test_a_recomputed_window_forgets_what_left_it(transformer, inputs, window):
    """Each chunk continues the window alone, as if the clip had begun there."""
    latents, _, text = inputs
    causalize(transformer)
    settings = RolloutSettings(chunk_latents=1, num_steps=2, window_chunks=window, recompute_window=True)
    rolling = RolloutSettings(chunk_latents=1, num_steps=2, window_chunks=window)
    prefix = latents[:, :, :5]
    arguments = transformer, prefix, text, 3
    ours, rolled = (torch.cat(list(rollout(*arguments, s, SEEDS)), dim=2) for s in (settings, rolling))
    assert not torch.allclose(ours, rolled, atol=1e-4)
    unlimited, clip = RolloutSettings(chunk_latents=1, num_steps=2), prefix
    with torch.no_grad():
        for index in range(5, 8):
            x = chunk_noise(SEEDS, index, (4, 1, 4, 4))
            seen = clip[:, :, -window:]
            for sigma, next_sigma in pairwise(unlimited.noise_levels()):
                levels = torch.zeros(2, window + 1)
                levels[:, -1] = sigma
                both, places = torch.cat([seen, x], dim=2), range(index - window, index + 1)
                mask = ChunkMask(window + 1, Chunks(1))
                v = causal_forward(transformer, both, levels, text, positions_F=places, mask=mask)[:, :, -1:]
                x = x + (next_sigma - sigma) * v
            clip = torch.cat([clip, x], dim=2)
    assert (ours - clip[:, :, 5:]).abs().max() <= 1e-5 * ours.abs().max()


REFRESHED = {
    "everything in view": {},
    "window": {"window_chunks": 2},
    "window and sink": {"window_chunks": 1, "sink_chunks": 1},
    "travelling sink": {"window_chunks": 1, "sink_chunks": 1, "relative_sink": True},
    "independent first chunk": {"first_chunk_latents": 1},
    "routing": {"routed_chunks": 1, "sink_chunks": 1},
    "guidance, noise on the context": {"guidance": 2.0, "history_guidance": 1.5, "context_sigma": 0.2},
}


@pytest.mark.parametrize("options", REFRESHED.values(), ids=REFRESHED)
def test_at_a_new_prompt_every_branch_sees_its_context_anew(transformer, inputs, options):
    """The velocity after the change is that of one masked pass over what is in view, under the new text."""
    latents, _, text = inputs
    causalize(transformer)
    settings = RolloutSettings(**{"chunk_latents": 2, "num_steps": 1, **options})
    chunks, context = settings.chunks, settings.context
    past = Past(transformer, settings, SEEDS, text, text * 0.3)
    clip = latents.repeat(1, 1, 2, 1, 1)
    with torch.no_grad():
        for index in range(5):
            past.add(index, clip[:, :, slice(*chunks.run(index))], anew=index == 4)
        past.text_BSD = -text
        past.refresh()
        sink, window = context.history(5)
        seen = [*sink, *window]
        held = torch.cat([clip[:, :, slice(*chunks.run(index))] for index in seen], dim=2)
        start, stop = chunks.run(5)
        x, F = clip[:, :, start:stop] * 0.5, held.shape[2]
        places = [*context_positions(seen, settings), *range(start, stop)]
        first = chunks.run(seen[0])[1] - chunks.run(seen[0])[0]
        mask = ChunkMask(F + 2, Chunks(2, first), Context(None, settings.sink_chunks, settings.routed_chunks))

        def velocity(words, sigma):
            eps = torch.cat(
                [chunk_noise(SEEDS, i, (4, chunks.run(i)[1] - chunks.run(i)[0], 4, 4), "context") for i in seen], dim=2
            )
            whole = torch.cat([(1 - sigma) * held + sigma * eps, x], dim=2)
            levels = torch.tensor([sigma] * F + [0.6] * 2).expand(2, -1)
            return causal_forward(transformer, whole, levels, words, positions_F=places, mask=mask)[:, :, F:]

        expected = velocity(-text, settings.context_sigma)
        if settings.guidance != 1:
            v = expected
            expected = v + (settings.guidance - 1) * (v - velocity(text * 0.3, settings.context_sigma))
            expected = expected + (settings.history_guidance - 1) * (v - velocity(-text, settings.history_sigma))
        ours = past.velocity(x, 0.6, range(start, stop))
    assert (ours - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_rollout_changes_its_prompt_where_it_is_told(transformer, inputs):
    latents, _, text = inputs
    settings, prefix = RolloutSettings(num_steps=1, window_chunks=2), latents[:, :, :3]
    causalize(transformer)
    plain, changed = (
        torch.cat(list(rollout(transformer, prefix, texts, 3, settings, SEEDS)), dim=2)
        for texts in (text, {0: text, 2: -text, 9: text})
    )
    assert torch.equal(changed[:, :, :3], plain[:, :, :3])
    assert not torch.allclose(changed[:, :, 3:], plain[:, :, 3:], atol=1e-3)


def test_a_chunk_belongs_to_who_asked_for_it(transformer, inputs):
    latents, _, text = inputs
    causalize(transformer)
    arguments = latents[:, :, :3], text, 2, RolloutSettings(num_steps=1), SEEDS
    untouched = list(rollout(transformer, *arguments))[1]
    chunks = rollout(transformer, *arguments)
    next(chunks).zero_()
    assert torch.equal(next(chunks), untouched)


def test_a_model_loaded_in_bfloat16_rolls_out(transformer, inputs, tmp_path):
    """diffusers keeps some parameters in float32, the first among them."""
    latents, _, text = inputs
    transformer.save_pretrained(tmp_path)
    half = causalize(WanTransformer3DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16))
    assert next(half.parameters()).dtype == torch.float32
    settings = RolloutSettings(num_steps=2, window_chunks=1, sink_chunks=1, relative_sink=True, guidance=2.0)
    ours, exact = (
        torch.cat(list(rollout(m, latents[:, :, :3], text, 3, settings, SEEDS, negative_text_BSD=-text)), dim=2)
        for m in (half, causalize(transformer))
    )
    assert ours.dtype == torch.float32
    assert (ours - exact).abs().mean() <= 0.05 * exact.abs().mean()


def test_a_prompt_of_one_chunk_on_is_the_prompt_from_the_start(transformer, inputs):
    latents, _, text = inputs
    settings, prefix = RolloutSettings(num_steps=1, window_chunks=1, recompute_window=True), latents[:, :, :6]
    causalize(transformer)
    one, two = (
        torch.cat(list(rollout(transformer, prefix, texts, 2, settings, SEEDS)), dim=2)
        for texts in (text, {0: -text, 2: text})
    )
    assert torch.allclose(one, two, atol=1e-5)


def test_a_travelling_sink_stays_before_the_window():
    settings = RolloutSettings(2, first_chunk_latents=1, window_chunks=2, sink_chunks=1, relative_sink=True)
    assert context_positions([0, 1], settings) == [0, 1, 2]
    assert context_positions([0, 5, 6], settings) == [8, 9, 10, 11, 12]
    assert context_positions([0], settings) == [0]
    still = RolloutSettings(chunk_latents=2, window_chunks=1, sink_chunks=1)
    assert context_positions([0, 5], still) == [0, 1, 10, 11]


@pytest.mark.parametrize("options", [{}, {"sink_chunks": 1, "relative_sink": True}], ids=["window", "sink"])
def test_routing_to_every_chunk_is_dense(transformer, inputs, options):
    latents, _, text = inputs
    causalize(transformer)
    arguments = transformer, latents[:, :, :4], text, 3
    options = {"window_chunks": 3, **options}
    dense, all_of_them, one = (
        torch.cat(list(rollout(*arguments, RolloutSettings(2, num_steps=2, routed_chunks=k, **options), SEEDS)), dim=2)
        for k in (None, 3, 1)
    )
    assert (all_of_them - dense).abs().max() <= 1e-5 * dense.abs().max()
    assert (one - dense).abs().max() > 1e-3 * dense.abs().max()


def test_a_routed_rollout_is_the_routed_mask(transformer, inputs):
    latents, _, text = inputs
    causalize(transformer)
    settings = RolloutSettings(num_steps=2, routed_chunks=1, window_chunks=2)
    arguments = transformer, latents[:, :, :6], text, 2, settings, SEEDS
    with torch.no_grad():
        expected = by_full_passes(*arguments)
    assert (torch.cat(list(rollout(*arguments)), dim=2) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("variant", ["window", "everything"])
def test_a_batch_is_its_prompts_one_by_one_and_longer_begins_like_shorter(transformer, inputs, variant):
    latents, _, text = inputs
    causalize(transformer)
    settings = RolloutSettings(**{"num_steps": 2, "renoise": True, **VARIANTS[variant]})
    prefix = latents[:, :, : settings.chunk_latents]

    def run(rows, num_chunks):
        arguments = transformer, prefix[rows], {0: text[rows], 2: -text[rows]}, num_chunks, settings, SEEDS[rows]
        return torch.cat(list(rollout(*arguments, negative_text_BSD=-text[:1])), dim=2)

    together = run(slice(0, 2), 3)
    for rows in (slice(0, 1), slice(1, 2)):
        assert (run(rows, 3) - together[rows]).abs().max() <= 1e-5 * together.abs().max()
    assert torch.equal(together[:, :, : settings.chunk_latents], run(slice(0, 2), 1))
    assert not torch.allclose(together[0], together[1], atol=0.1)


@pytest.mark.parametrize("options", [{}, {"sink_chunks": 1, "relative_sink": True}], ids=["window", "sink"])
def test_ten_thousand_latents_past_the_rotary_table_in_flat_memory(inputs, tiny_config, options):
    latents, _, text = inputs
    torch.manual_seed(0)
    transformer = causalize(WanTransformer3DModel(**{**tiny_config, "num_layers": 1}).eval()).train()
    settings = RolloutSettings(chunk_latents=25, num_steps=1, window_chunks=1, **options)
    count, last = 0, None
    bytes_held = []
    for last in rollout(transformer, latents[:1, :, :0], text[:1], 400, settings, [1]):
        count += 1
        assert last.shape == (1, 4, 25, 4, 4)
        assert not last.requires_grad
        if count in (10, 400):
            gc.collect()
            held = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors()}
            bytes_held.append(sum(held.values()))
    assert count == 400
    assert bytes_held[0] == bytes_held[1]
    assert torch.isfinite(last).all()
    assert torch.is_grad_enabled()
    assert transformer.training


def tensors() -> list[torch.Tensor]:
    """All that are alive."""
    return [x for x in gc.get_objects() if type(x) in (torch.Tensor, torch.nn.Parameter)]


def test_far_along_is_as_near_the_start(transformer, inputs):
    """What a window sees does not depend on where it stands, even 10,000 latents on."""
    latents, _, text = inputs
    causalize(transformer)
    with torch.no_grad():
        near, far = (cached_velocity(transformer, latents, text, start) for start in (0, 10_002))
    assert (near - far).abs().max() <= 1e-4 * near.abs().max()


def cached_velocity(transformer, latents, text, start):
    cache = new_cache(transformer, Context(2))
    for at in (0, 3, 6):
        part, places = latents[:, :, at : at + 3], range(start + at, start + at + 3)
        v = causal_forward(transformer, part, torch.zeros(2, 3), text, positions_F=places, cache=cache)
        cache.commit()
    return v


@pytest.mark.parametrize(
    "options",
    [{}, {"sink_chunks": 1, "relative_sink": True}, {"guidance": 2.0}, {"recompute_window": True}],
    ids=["window", "sink", "guidance", "recomputed"],
)
def test_a_long_rollout_compiles_to_few_graphs(transformer, inputs, options):
    latents, _, text = inputs
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    causalize(transformer)
    settings = RolloutSettings(num_steps=2, window_chunks=4, **options)
    arguments = transformer, latents[:, :, :3], {0: text, 4: -text, 7: text}, 10, settings, SEEDS
    plain = list(rollout(*arguments, negative_text_BSD=-text))
    torch.compiler.reset()
    transformer.compile_repeated_blocks(backend=backend, fullgraph=True)
    compiled = list(rollout(*arguments, negative_text_BSD=-text))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(plain, compiled, strict=True))
    assert 1 <= len(graphs) <= 4


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
    with pytest.raises(ValueError, match=r"begin at the chunks \[1\]; the first must begin at 0"):
        next(rollout(transformer, latents[:, :, :3], {1: text}, 1, RolloutSettings(), SEEDS))
    with pytest.raises(ValueError, match=r"guidance=2.0 needs negative_text_BSD, of batch 2 or 1"):
        next(rollout(transformer, latents[:, :, :3], text, 1, RolloutSettings(guidance=2.0), SEEDS))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"num_steps": 0}, "num_steps must be at least 1, not 0"),
        ({"shift": 0.0}, "shift must be above 0"),
        ({"shift": float("inf")}, "shift must be above 0 and finite"),
        ({"guidance": float("nan")}, "guidance must be finite"),
        ({"window_chunks": -1}, "window_chunks must be at least 0, not -1"),
        ({"routed_chunks": 0}, "routed_chunks must be at least 1, not 0"),
        ({"first_chunk_latents": 4}, r"first chunk must have 1\.\.3 frames"),
        ({"context_sigma": 1.5}, r"context_sigma must be in 0\.\.1, not 1.5"),
        ({"num_steps": 2, "sigmas": (0.9, 0.5)}, r"fall from 1, 0 left out, not \[0.9, 0.5\]"),
        ({"num_steps": 3, "sigmas": (1.0, 0.5)}, "num_steps=3 numbers"),
    ],
)
def test_impossible_settings_are_named(setting, message):
    with pytest.raises(ValueError, match=message):
        RolloutSettings(**setting)


def test_a_model_that_breaks_down_is_a_user_error_naming_chunk_and_seeds(transformer, inputs):
    latents, _, text = inputs
    text[1] = float("nan")
    chunks = rollout(causalize(transformer), latents[:, :, :3], text, 2, RolloutSettings(num_steps=1), SEEDS)
    with pytest.raises(RolloutError, match=r"chunk 1 is not finite \(seeds 12\)"):
        next(chunks)
    assert issubclass(RolloutError, ValueError)

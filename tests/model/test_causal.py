"""The causalized transformer against stock Wan, against SkyReels-V2 with the same weights, and against itself."""

import copy
import pickle

import pytest
import torch
from diffusers import SkyReelsV2Transformer3DModel, WanTransformer3DModel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig

from model.causal import causal_forward, causalize, decausalize, new_cache
from model.masks import ChunkMask, Chunks, Context, teacher_forcing_mask
from model.rope import rotary_table

CPU = torch.device("cpu")
TOKENS = 4  # tokens per latent frame of the fixtures


def test_swapped_without_mask_is_stock(transformer, inputs):
    latents, _, text = inputs
    timestep = torch.tensor([250.0, 900.0])
    stock = transformer(latents, timestep, text, return_dict=False)[0]
    sigmas = (timestep / 1000)[:, None].expand(2, 9)
    ours = causal_forward(causalize(transformer), latents, sigmas, text, positions_F=range(9))
    assert (ours - stock).abs().max() <= 1e-6 * stock.abs().max()


def test_noise_level_per_frame_is_the_stock_per_token_path(transformer, inputs):
    latents, sigmas, text = inputs
    stock = transformer(latents, (sigmas * 1000).repeat_interleave(TOKENS, dim=1), text, return_dict=False)[0]
    ours = causal_forward(causalize(transformer), latents, sigmas, text, positions_F=range(9))
    assert (ours - stock).abs().max() <= 1e-6 * stock.abs().max()


def test_block_causal_is_skyreels(transformer, inputs, tiny_config):
    latents, sigmas, text = inputs
    oracle = SkyReelsV2Transformer3DModel(**tiny_config, inject_sample_info=False, num_frame_per_block=3).eval()
    oracle.load_state_dict(transformer.state_dict(), strict=True)
    # SkyReels embeds integer timesteps
    sigmas = (sigmas * 1000).round() / 1000
    timesteps = (sigmas * 1000).round().long()
    expected = oracle(latents, timesteps, text, enable_diffusion_forcing=True, return_dict=False)[0]
    mask = ChunkMask(9, Chunks(3))
    ours = causal_forward(causalize(transformer), latents, sigmas, text, positions_F=range(9), mask=mask)
    assert (ours - expected).abs().max() <= 1e-5 * expected.abs().max()


def cached(transformer, latents, sigmas, text, chunks, cache):
    """Chunk after chunk, each after a denoising forward that leaves no trace."""
    out = []
    for start, stop in chunks.runs(latents.shape[2]):
        part, levels = latents[:, :, start:stop], sigmas[:, start:stop]
        causal_forward(transformer, part + 1, levels / 2 + 0.5, text, positions_F=range(start, stop), cache=cache)
        out.append(causal_forward(transformer, part, levels, text, positions_F=range(start, stop), cache=cache))
        cache.commit()
    return torch.cat(out, dim=2)


@given(
    st.integers(1, 4), st.none() | st.integers(1, 4), st.none() | st.integers(0, 3), st.integers(0, 2),
    st.integers(1, 9), st.booleans(),
)  # fmt: skip
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_cached_chunks_are_one_masked_pass(transformer, inputs, size, first, window, sink, frames, grad):
    latents, sigmas, text = (inputs[0][:, :, :frames], inputs[1][:, :frames], inputs[2])
    chunks, context = Chunks(size, first and min(first, size)), Context(window, sink)
    causalize(transformer)
    with torch.set_grad_enabled(grad):
        mask = ChunkMask(frames, chunks, context)
        whole = causal_forward(transformer, latents, sigmas, text, positions_F=range(frames), mask=mask)
        ours = cached(transformer, latents, sigmas, text, chunks, new_cache(transformer, context))
    assert (ours - whole).abs().max() <= 1e-5 * whole.abs().max()


@given(
    st.integers(1, 4), st.none() | st.integers(1, 4), st.none() | st.integers(0, 3), st.integers(0, 2),
    st.integers(1, 9),
)  # fmt: skip
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_one_pass_of_teacher_forcing_is_a_rollout_with_clean_commits(
    transformer, inputs, size, first, window, sink, frames
):
    clean, sigmas, text = (inputs[0][:, :, :frames], inputs[1][:, :frames], inputs[2])
    noisy, chunks, context = clean.flip(2) * 0.7, Chunks(size, first and min(first, size)), Context(window, sink)
    causalize(transformer)
    with torch.no_grad():
        both, levels = torch.cat([clean, noisy], dim=2), torch.cat([torch.zeros_like(sigmas), sigmas], dim=1)
        mask, places = teacher_forcing_mask(frames, chunks, context), [*range(frames)] * 2
        whole = causal_forward(transformer, both, levels, text, positions_F=places, mask=mask)
        cache, out = new_cache(transformer, context), []
        for start, stop in chunks.runs(frames):
            run, places = slice(start, stop), range(start, stop)
            parts = (noisy, sigmas), (clean, torch.zeros_like(sigmas))
            velocity, _ = (
                causal_forward(transformer, x[:, :, run], s[:, run], text, positions_F=places, cache=cache)
                for x, s in parts
            )
            out.append(velocity)
            cache.commit()
    assert (torch.cat(out, dim=2) - whole[:, :, frames:]).abs().max() <= 1e-5 * whole.abs().max()


def test_a_travelling_sink_is_relabelling_sink_and_window(inputs, tiny_config):
    """One layer, whose keys do not depend on the past: its context can be computed anew at any positions."""
    latents, sigmas, text = inputs
    torch.manual_seed(0)
    transformer = causalize(WanTransformer3DModel(**{**tiny_config, "num_layers": 1}).eval())
    transformer.blocks[0].attn1.to_q.weight.data *= 8  # so that positions matter
    with torch.no_grad():
        for relative in (False, True):
            cache = new_cache(transformer, Context(1, 1), relative_sink=relative)
            ours = cached(transformer, latents, sigmas, text, Chunks(1), cache)[:, :, 8:]
            places = [6, 7, 8] if relative else [0, 7, 8]
            seen = [0, 7, 8]
            expected = causal_forward(
                transformer, latents[:, :, seen], sigmas[:, seen], text, positions_F=places,
                mask=ChunkMask(3, Chunks(1)),
            )  # fmt: skip
            assert (ours - expected[:, :, 2:]).abs().max() <= 1e-5 * expected.abs().max()
            other = causal_forward(
                transformer, latents[:, :, seen], sigmas[:, seen], text, positions_F=[3, 7, 8],
                mask=ChunkMask(3, Chunks(1)),
            )  # fmt: skip
            assert (ours - other[:, :, 2:]).abs().max() > 1e-3 * expected.abs().max()


def test_the_future_changes_nothing(transformer, inputs):
    latents, sigmas, text = inputs
    causalize(transformer)
    mask = ChunkMask(9, Chunks(3))
    changed, changed_sigmas = latents.clone(), sigmas.clone()
    changed[:, :, 6:] += 5
    changed_sigmas[:, 6:] = 0.123
    before = causal_forward(transformer, latents, sigmas, text, positions_F=range(9), mask=mask)
    after = causal_forward(transformer, changed, changed_sigmas, text, positions_F=range(9), mask=mask)
    assert torch.equal(before[:, :, :6], after[:, :, :6])
    assert not torch.allclose(before[:, :, 6:], after[:, :, 6:])
    # and the past matters
    changed = latents.clone()
    changed[:, :, :3] += 5
    after = causal_forward(transformer, changed, sigmas, text, positions_F=range(9), mask=mask)
    assert not torch.allclose(before[:, :, 6:], after[:, :, 6:])


def test_undo_restores_stock_to_the_bit(transformer, inputs):
    latents, _, text = inputs
    rope, processors, state = transformer.rope, dict(transformer.attn_processors), transformer.state_dict().keys()
    before = transformer(latents, torch.tensor([1.0, 500.0]), text, return_dict=False)[0]
    causalize(causalize(transformer))
    assert transformer.state_dict().keys() == state
    causal_forward(transformer, latents, torch.zeros(2, 9), text, positions_F=range(5, 14))
    decausalize(transformer)
    assert transformer.rope is rope
    assert all(transformer.attn_processors[name] is processor for name, processor in processors.items())
    assert torch.equal(before, transformer(latents, torch.tensor([1.0, 500.0]), text, return_dict=False)[0])


def test_a_causal_model_saves_as_a_stock_one(transformer, inputs, tmp_path):
    latents, _, text = inputs
    before = transformer(latents, torch.tensor([1.0, 500.0]), text, return_dict=False)[0]
    causalize(transformer).save_pretrained(tmp_path)
    loaded = WanTransformer3DModel.from_pretrained(tmp_path).eval()
    assert torch.equal(before, loaded(latents, torch.tensor([1.0, 500.0]), text, return_dict=False)[0])


def test_rotary_table_is_stock_inside_and_goes_on_outside(transformer):
    stock = transformer.rope
    for ours, theirs in zip(
        rotary_table(stock, range(1024), 2, 3, CPU), stock(torch.empty(1, 4, 1024, 4, 6)), strict=True
    ):
        assert torch.equal(ours, theirs)
    late = rotary_table(stock, [7, 1023], 2, 3, CPU)[0]
    assert torch.equal(late[:, 6:], rotary_table(stock, range(1024), 2, 3, CPU)[0][:, 1023 * 6 :])
    beyond = rotary_table(stock, [5000], 1, 1, CPU)[0][0, 0, 0]
    phase = 5000 / 10000 ** (2 / stock.t_dim)
    assert beyond[2] == pytest.approx(torch.tensor(phase, dtype=torch.float64).cos().item(), abs=1e-6)


def test_only_distances_between_frames_matter_far_beyond_the_table(transformer, inputs):
    latents, sigmas, text = inputs
    causalize(transformer)
    near = causal_forward(transformer, latents, sigmas, text, positions_F=range(9))
    far = causal_forward(transformer, latents, sigmas, text, positions_F=range(3000, 3009))
    assert (near - far).abs().max() <= 1e-4 * near.abs().max()


def test_gradients_with_and_without_checkpointing_are_equal(transformer, inputs):
    """Through a mask, and through several forwards on a cache that moves on before the one backward."""
    latents, sigmas, text = inputs
    grads = []
    for checkpointing in (False, True):
        model = causalize(copy.deepcopy(decausalize(transformer))).train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        masks = ChunkMask(9, Chunks(3)), ChunkMask(9, Chunks(1), Context(None, 1, 1))
        losses = [
            causal_forward(model, latents, sigmas, text, positions_F=range(9), mask=mask).square().mean()
            for mask in masks
        ]
        cache = new_cache(model, Context(1, 1), relative_sink=True)
        for start in range(9):
            one = slice(start, start + 1)
            v = causal_forward(model, latents[:, :, one], sigmas[:, one], text, positions_F=[start], cache=cache)
            losses.append(v.square().mean())
            cache.commit()
            with torch.no_grad():
                assert not cache.begin(1, TOKENS, torch.empty(2, 2, 16))[0].get()[0].requires_grad
        sum(losses).backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
    assert all(g is not None and torch.isfinite(g).all() and g.abs().max() > 0 for g in grads[0].values())
    assert all(torch.equal(grads[0][name], grads[1][name]) for name in grads[0])
    assert model._gradient_checkpointing_func.__module__.startswith("diffusers")
    assert decausalize(model).is_gradient_checkpointing
    model.gradient_checkpointing = False
    assert not decausalize(causalize(model)).is_gradient_checkpointing


def test_a_backward_between_a_forward_and_its_commit_changes_nothing(transformer, inputs):
    """A gradient through one step, then the clean forward, then backward, then commit: as self-forcing goes."""
    latents, sigmas, text = inputs
    kept = []
    for checkpointing in (False, True):
        model = causalize(copy.deepcopy(decausalize(transformer))).train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        cache, chunk, places = new_cache(model), latents[:, :, :3], range(3)
        v = causal_forward(model, chunk, sigmas[:, :3] * 0 + 0.7, text, positions_F=places, cache=cache)
        with torch.no_grad():
            causal_forward(model, chunk, sigmas[:, :3] * 0, text, positions_F=places, cache=cache)
        v.square().mean().backward()
        cache.commit()
        with torch.no_grad():
            kept.append([x.clone() for x in cache.begin(3, TOKENS, torch.empty(2, 2, 16))[1].get()])
    assert all(torch.equal(a, b) for a, b in zip(*kept, strict=True))


def test_nothing_stays_with_the_transformer_after_a_forward(transformer, inputs):
    latents, sigmas, text = inputs
    size = len(pickle.dumps(causalize(transformer)))
    with torch.no_grad():
        causal_forward(transformer, latents, sigmas, text, positions_F=range(9), cache=new_cache(transformer))
        causal_forward(transformer, latents, sigmas, text, positions_F=range(9), mask=ChunkMask(9, Chunks(3)))
    assert len(pickle.dumps(transformer)) < size + 20_000  # the last rotary table
    with pytest.raises(ValueError, match="runs through causal_forward"):
        transformer(latents, torch.tensor([1.0, 500.0]), text)


def test_rotary_tables_are_not_mixed_up_between_sizes(transformer, inputs):
    latents, sigmas, text = inputs
    causalize(transformer)
    wide = torch.cat([latents, latents], dim=4)
    alone = causal_forward(transformer, latents, sigmas, text, positions_F=range(9))
    causal_forward(transformer, wide, sigmas, text, positions_F=range(9))
    assert torch.equal(causal_forward(transformer, latents, sigmas, text, positions_F=range(9)), alone)


def test_routing_under_autocast(transformer, inputs):
    latents, sigmas, text = inputs
    causalize(transformer)
    mask, cache = ChunkMask(9, Chunks(1), Context(routed_chunks=2)), new_cache(transformer, Context(routed_chunks=1))
    plain = causal_forward(transformer, latents, sigmas, text, positions_F=range(9), mask=mask)
    with torch.autocast("cpu", torch.bfloat16):
        v = causal_forward(transformer, latents, sigmas, text, positions_F=range(9), mask=mask)
        assert (v - plain).abs().mean() <= 0.05 * plain.abs().mean()
        for at in range(4):
            one = slice(at, at + 1)
            causal_forward(transformer, latents[:, :, one], sigmas[:, one], text, positions_F=[at], cache=cache)
            cache.commit()


def test_lora_trains_on_the_causal_model_and_loads_into_a_stock_one(transformer, inputs, tmp_path):
    latents, sigmas, text = inputs
    stock = copy.deepcopy(transformer)
    causalize(transformer)
    plain = causal_forward(transformer, latents, sigmas, text, positions_F=range(9))
    projections = ["to_q", "to_k", "to_v", "to_out.0"]
    transformer.add_adapter(LoraConfig(r=4, target_modules=projections, init_lora_weights=False))
    transformer.train()
    mask = ChunkMask(9, Chunks(3))
    causal_forward(transformer, latents, sigmas, text, positions_F=range(9), mask=mask).square().mean().backward()
    learning = {name for name, p in transformer.named_parameters() if p.grad is not None}
    assert learning == {name for name, p in transformer.named_parameters() if "lora" in name}
    assert len(learning) == 3 * 2 * 4 * 2  # layers, attentions, projections, A and B
    transformer.eval()
    adapted = causal_forward(transformer, latents, sigmas, text, positions_F=range(9))
    assert not torch.allclose(adapted, plain, atol=1e-3)
    transformer.save_lora_adapter(tmp_path)
    stock.load_lora_adapter(str(tmp_path), prefix=None, use_safetensors=True)
    timesteps = (sigmas * 1000).repeat_interleave(TOKENS, dim=1)
    expected = stock(latents, timesteps, text, return_dict=False)[0]
    assert (adapted - expected).abs().max() <= 1e-5 * expected.abs().max()
    # a cached rollout sees the adapter too
    cache = new_cache(transformer)
    with torch.no_grad():
        whole = causal_forward(transformer, latents, sigmas, text, positions_F=range(9), mask=mask)
        chunks = cached(transformer, latents, sigmas, text, Chunks(3), cache)
        assert (chunks - whole).abs().max() <= 1e-5 * whole.abs().max()
    transformer.delete_adapters("default")
    assert torch.equal(causal_forward(transformer, latents, sigmas, text, positions_F=range(9)), plain)


def test_text_is_projected_once_per_clip(transformer, inputs):
    latents, sigmas, text = inputs
    causalize(transformer)
    seen = []
    for module in (transformer.condition_embedder.text_embedder, transformer.blocks[0].attn2.to_k):
        module.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[:2]))
    causal_forward(transformer, latents, sigmas, text, positions_F=range(9))
    assert seen == [(2, 6), (2, 6)]


def test_mistakes_are_named(transformer, inputs, tiny_config):
    latents, sigmas, text = inputs
    with pytest.raises(ValueError, match="causalize"):
        causal_forward(transformer, latents, sigmas, text, positions_F=range(9))
    with pytest.raises(ValueError, match="patch_size"):
        causalize(WanTransformer3DModel(**{**tiny_config, "patch_size": (3, 2, 2)}))
    causalize(transformer)
    with pytest.raises(ValueError, match="8 positions"):
        causal_forward(transformer, latents, sigmas, text, positions_F=range(8))
    with pytest.raises(ValueError, match="mask is for 6 frames, the latents have 9"):
        causal_forward(transformer, latents, sigmas, text, positions_F=range(9), mask=ChunkMask(6, Chunks(3)))
    cache = new_cache(transformer)
    causal_forward(transformer, latents, sigmas, text, positions_F=range(9), cache=cache)
    cache.commit()
    with pytest.raises(ValueError, match="without a past"):
        causal_forward(
            transformer, latents, sigmas, text, positions_F=range(9), mask=ChunkMask(9, Chunks(3)), cache=cache
        )

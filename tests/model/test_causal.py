"""The causalized transformer against stock Wan, against SkyReels-V2 with the same weights, and against itself."""

import copy

import pytest
import torch
from diffusers import SkyReelsV2Transformer3DModel, WanTransformer3DModel

from model.cache import KVCache
from model.causal import causal_forward, causalize, decausalize, rotary_table
from model.masks import block_causal, token_mask

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
    mask = token_mask(9, 3, None, TOKENS, CPU)
    ours = causal_forward(causalize(transformer), latents, sigmas, text, positions_F=range(9), mask=mask)
    assert (ours - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("window", [None, 0, 1])
def test_cached_chunks_are_one_masked_pass(transformer, inputs, window):
    latents, _, text = inputs
    causalize(transformer)
    clean = torch.zeros(2, 9)
    mask = token_mask(9, 3, window, TOKENS, CPU)
    with torch.no_grad():
        whole = causal_forward(transformer, latents, clean, text, positions_F=range(9), mask=mask)
        cache, chunks = KVCache(3, window), []
        for start in range(0, 9, 3):
            part, places = latents[:, :, start : start + 3], range(start, start + 3)
            # a denoising forward leaves no trace
            causal_forward(transformer, part + 1, clean[:, :3] + 0.5, text, positions_F=places, cache=cache)
            chunks.append(causal_forward(transformer, part, clean[:, :3], text, positions_F=places, cache=cache))
            cache.commit()
    assert cache.num_tokens == (9 if window is None else 3 * window) * TOKENS
    assert (torch.cat(chunks, dim=2) - whole).abs().max() <= 1e-5 * whole.abs().max()


def test_the_future_changes_nothing(transformer, inputs):
    latents, sigmas, text = inputs
    causalize(transformer)
    mask = token_mask(9, 3, None, TOKENS, CPU)
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


def test_gradients_flow_and_checkpointing_does_not_change_them(transformer, inputs):
    latents, sigmas, text = inputs
    mask = token_mask(9, 3, None, TOKENS, CPU)
    grads = []
    for checkpointing in (False, True):
        model = causalize(copy.deepcopy(decausalize(transformer))).train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        cache = KVCache(3)
        causal_forward(model, latents[:, :, :3], sigmas[:, :3], text, positions_F=range(3), cache=cache)
        cache.commit()
        assert not cache.layers[0].get()[0].requires_grad
        causal_forward(model, latents, sigmas, text, positions_F=range(9), mask=mask).square().mean().backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
    assert all(g is not None and torch.isfinite(g).all() and g.abs().max() > 0 for g in grads[0].values())
    assert all(torch.equal(grads[0][name], grads[1][name]) for name in grads[0])


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
    with pytest.raises(RuntimeError, match="nothing to commit"):
        KVCache(3).commit()
    assert block_causal(9, 3).shape == (9, 9)

"""Adapters: nothing at first, all that is trained, and gone when merged."""

import itertools
from dataclasses import replace

import torch
from diffusers import WanTransformer3DModel

from model.causal import causal_forward, causalize, decausalize
from model.lora import add_lora, merge_lora
from model.masks import ChunkMask, Chunks
from model.training import train
from tests.model.test_training import SETTINGS, batch


def velocity(model, inputs):
    latents, sigmas, text = inputs
    with torch.no_grad():
        return causal_forward(
            causalize(model), latents, sigmas, text, positions_F=range(9), mask=ChunkMask(9, Chunks(3))
        )


def test_adapters_train_alone_and_fold_into_a_stock_model(transformer, inputs, tmp_path):
    before, frozen = velocity(transformer, inputs), transformer.blocks[0].attn1.to_q.weight.clone()
    keys = set(transformer.state_dict())
    torch.manual_seed(1)
    drawn = torch.random.get_rng_state()
    add_lora(transformer, 4, seed=0)
    assert torch.equal(torch.random.get_rng_state(), drawn)  # global randomness is left alone
    assert torch.equal(velocity(transformer, inputs), before)
    trained = {name for name, p in transformer.named_parameters() if p.requires_grad}
    assert len(trained) == 3 * (4 + 4 + 2) * 2  # per block: both attentions' four layers and two of the feed-forward
    assert all("lora" in name for name in trained)

    settings = replace(SETTINGS, num_steps=8, learning_rate=1e-2, text_dropout=0.0, ema_decay=0.5)
    metrics = train(transformer, lambda start: itertools.repeat(batch(0)), settings)
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    adapted = velocity(transformer, inputs)
    assert not torch.allclose(adapted, before, rtol=1e-3)
    merge_lora(transformer)
    assert torch.allclose(velocity(transformer, inputs), adapted, rtol=1e-4, atol=1e-5)
    assert set(transformer.state_dict()) == keys
    assert not torch.equal(transformer.blocks[0].attn1.to_q.weight, frozen)
    decausalize(transformer).save_pretrained(tmp_path)
    again = WanTransformer3DModel.from_pretrained(tmp_path)
    assert torch.allclose(velocity(again, inputs), adapted, rtol=1e-4, atol=1e-5)


def test_the_first_adapters_are_named_by_seed(transformer, tiny_config):
    def first(seed):
        torch.manual_seed(seed + 17)
        model = WanTransformer3DModel(**tiny_config)
        add_lora(model, 2, seed)
        return torch.cat([p.flatten() for name, p in model.named_parameters() if "lora_A" in name])

    assert torch.equal(first(0), first(0))
    assert not torch.equal(first(0), first(1))

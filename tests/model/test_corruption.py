"""Corruptions of a history: what each kind does, and that a clip's own generator decides."""

import pytest
import torch

from model.corruption import KINDS, corrupt
from model.rng import torch_generator


@pytest.fixture
def clip(inputs):
    return inputs[0][0]  # [4, 9, 4, 4]


@pytest.mark.parametrize("kind", [*KINDS, None])
def test_without_strength_nothing_changes(clip, kind):
    assert torch.equal(corrupt(clip, 3, 0.0, torch_generator("c"), kind), clip)


def test_each_kind_is_what_its_name_says(clip):
    made = {kind: corrupt(clip, 9, 0.5, torch_generator("c"), kind) for kind in KINDS}
    assert len({tensor.sum().item() for tensor in made.values()}) == len(KINDS)
    factor = made["gain"] / clip
    assert torch.allclose(factor, factor.flatten()[0].expand_as(factor), rtol=1e-4)
    assert 0.5 <= factor.mean() <= 1.5
    shift = made["cast"] - clip  # one number for each channel
    assert torch.allclose(shift, shift[:, :1, :1, :1].expand_as(shift), atol=1e-5)
    assert len(shift[:, 0, 0, 0].unique()) == 4
    flat = torch.ones_like(clip)
    assert torch.allclose(corrupt(flat, 9, 1.0, torch_generator("c"), "blur"), flat)
    assert made["blur"].var() < clip.var()
    residue = (made["noise"] - clip).std().item()
    assert 0 < residue <= 0.6


def test_chunks_are_corrupted_apart_and_reproducibly(clip):
    first, again, other = (corrupt(clip, 3, 0.5, torch_generator("c", n)) for n in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    changes = [(first - clip)[:, 3 * i : 3 * i + 3] for i in range(3)]
    assert all(not torch.equal(changes[0], change) for change in changes[1:])


def test_kinds_are_drawn_evenly():
    """Of a constant clip, blur changes nothing, gain keeps it constant, cast keeps channels constant."""
    flat, seen = torch.ones(2, 1, 4, 4), []
    for n in range(400):
        change = corrupt(flat, 1, 1.0, torch_generator("k", n)) - flat
        constant = torch.equal(change, change[:, :1, :1, :1].expand_as(change))
        if change.abs().max() < 1e-6:
            seen.append("blur")
        elif constant:
            seen.append("gain" if change[0, 0, 0, 0] == change[1, 0, 0, 0] else "cast")
        else:
            seen.append("noise")
    assert all(60 <= seen.count(kind) <= 140 for kind in KINDS)


def test_an_unknown_kind_is_refused(clip):
    with pytest.raises(ValueError, match="noise, blur, gain, cast"):
        corrupt(clip, 3, 0.1, torch_generator("c"), "jpeg")

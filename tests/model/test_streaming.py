"""Piece by piece is exactly the whole, for every kind of Wan VAE, whoever else uses the VAE in between."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan

from model.pipeline import decode_latents, encode_frames
from model.streaming import StreamingDecoder, latent_statistics

ROOT = Path(__file__).parents[2]
WAN = {
    "base_dim": 8, "z_dim": 4, "dim_mult": [1, 1, 1], "num_res_blocks": 1, "temperal_downsample": [True, True],
    "latents_mean": [0.5, -0.5, 0.0, 1.0], "latents_std": [1.0, 2.0, 0.5, 1.0], "scale_factor_temporal": 4,
    "scale_factor_spatial": 4,
}  # fmt: skip
KINDS = {
    "wan": WAN,  # 4 frames to a latent, the first alone
    "frame": {**WAN, "temperal_downsample": [False, False], "scale_factor_temporal": 1},
    "patched": {**WAN, "temperal_downsample": [], "dim_mult": [1], "in_channels": 48, "out_channels": 48,
                "patch_size": 4, "scale_factor_temporal": 1},
    "wan2.2": {**WAN, "is_residual": True, "in_channels": 12, "out_channels": 12, "patch_size": 2,
               "scale_factor_spatial": 8},
}  # fmt: skip
PIECES = [[1] * 7, [2, 2, 2, 1], [3, 3, 1], [1, 3, 3], [1, 4, 2], [7]]


@pytest.fixture(scope="module", params=KINDS)
def vae(request):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoencoderKLWan(**KINDS[request.param]).eval()


@pytest.fixture(scope="module")
def wan_vae():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoencoderKLWan(**WAN).eval()


def latents_of(vae: AutoencoderKLWan, num: int = 7, batch: int = 1, size: tuple[int, int] = (4, 6), seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, vae.config.z_dim, num, *size, generator=generator)


@torch.no_grad()
def whole(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """What diffusers' own decode gives."""
    mean, std = latent_statistics(vae, latents)
    return vae.decode(latents * std + mean).sample


def as_frames(pixels: torch.Tensor) -> np.ndarray:
    return ((pixels + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 4, 1).numpy()


def stream(decoder: StreamingDecoder, latents: torch.Tensor, pieces: list[int]) -> torch.Tensor:
    return torch.cat([pixels for piece in latents.split(pieces, 2) for pixels in decoder.pixels(piece)], 2)


@pytest.mark.parametrize("pieces", PIECES, ids=str)
@pytest.mark.parametrize("batch", [1, 2])
def test_pieces_of_any_lengths_are_the_whole(vae, pieces, batch):
    latents = latents_of(vae, batch=batch)
    expected = whole(vae, latents)
    found = stream(StreamingDecoder(vae), latents, pieces)
    assert torch.equal(found, expected)
    assert not torch.equal(expected[:, :, :-1], expected[:, :, 1:])
    assert not found.requires_grad
    decoder = StreamingDecoder(vae)
    frames = [decoder.decode(piece) for piece in latents.split(pieces, 2)]
    ratio = vae.config.scale_factor_temporal
    assert [f.shape[1] for f in frames] == [ratio * (n - 1) + 1 if not i else ratio * n for i, n in enumerate(pieces)]
    assert np.array_equal(np.concatenate(frames, 1), as_frames(expected))
    assert all(f.flags.c_contiguous and f.dtype == np.uint8 for f in frames)


def test_decode_latents_is_what_diffusers_decodes(vae):
    latents = latents_of(vae, batch=2)
    assert np.array_equal(decode_latents(vae, latents), as_frames(whole(vae, latents)))


def test_the_toy_base_decodes_as_before():
    vae = AutoencoderKLWan.from_pretrained(ROOT / "assets" / "toy-base" / "vae").eval()
    latents = encode_frames(vae, np.random.default_rng(0).integers(0, 256, (2, 9, 32, 32, 3), np.uint8))
    expected = whole(vae, latents)
    assert torch.equal(stream(StreamingDecoder(vae), latents, [2, 3, 3, 1]), expected)
    assert np.array_equal(decode_latents(vae, latents), as_frames(expected))


def test_the_past_counts(wan_vae):
    """A piece decoded as if it were a clip of its own is another picture, and shorter."""
    latents = latents_of(wan_vae)
    decoder = StreamingDecoder(wan_vae)
    decoder.decode(latents[:, :, :3])
    continued, alone = decoder.decode(latents[:, :, 3:]), decode_latents(wan_vae, latents[:, :, 3:])
    assert continued.shape[1] == alone.shape[1] + 3
    assert not np.array_equal(continued[:, 3:], alone)


def test_decoders_and_whole_decodes_take_turns_over_one_vae(vae):
    first, second = latents_of(vae, batch=2), latents_of(vae, num=5, size=(3, 5), seed=1)
    expected = [whole(vae, first), whole(vae, second)]
    one, two = StreamingDecoder(vae), StreamingDecoder(vae)
    found: list[list[torch.Tensor]] = [[], []]
    for index in range(7):
        found[0] += one.pixels(first[:, :, index : index + 1])
        if index < 5:
            found[1] += two.pixels(second[:, :, index : index + 1])
        assert torch.equal(whole(vae, second), expected[1])
        encode_frames(vae, np.zeros((1, 1, 32, 32, 3), np.uint8))
    assert torch.equal(torch.cat(found[0], 2), expected[0])
    assert torch.equal(torch.cat(found[1], 2), expected[1])


def test_reset_begins_another_clip(vae):
    decoder = StreamingDecoder(vae)
    decoder.decode(latents_of(vae, 3))
    decoder.reset()
    other = latents_of(vae, 4, batch=2, size=(3, 5), seed=1)
    assert torch.equal(stream(decoder, other, [3, 1]), whole(vae, other))


def test_what_is_kept_does_not_grow(vae):
    decoder = StreamingDecoder(vae)
    kept = []
    for piece in latents_of(vae, 24).split(3, 2):
        decoder.decode(piece)
        # Storage, not elements: a view would keep all that it is a view of.
        tensors = [x for x in decoder._features if isinstance(x, torch.Tensor)]
        kept.append(sum(x.untyped_storage().nbytes() for x in tensors))
        assert sum(x.nbytes for x in tensors) == kept[-1]
    assert kept[0] > 0
    assert set(kept[1:]) == {kept[1]}


def test_half_precision_is_that_of_the_vae(wan_vae):
    vae = AutoencoderKLWan(**WAN).eval()
    vae.load_state_dict(wan_vae.state_dict())
    vae.to(torch.bfloat16)
    latents = latents_of(vae)
    found = stream(StreamingDecoder(vae), latents, [1, 4, 2])
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, whole(vae, latents.to(torch.bfloat16)))


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((4, 3, 4, 6), r"\[B, 4, F, h, w\] with F >= 1, saw \[4, 3, 4, 6\]"),
        ((1, 5, 3, 4, 6), r"saw \[1, 5, 3, 4, 6\]"),
        ((1, 4, 0, 4, 6), r"saw \[1, 4, 0, 4, 6\]"),
        ((2, 4, 1, 4, 6), r"\(1, 4, 4, 6\), saw \(2, 4, 4, 6\); reset\(\)"),
        ((1, 4, 1, 6, 4), r"\(1, 4, 4, 6\), saw \(1, 4, 6, 4\); reset\(\)"),
    ],
)
def test_latents_that_do_not_continue_the_clip_are_refused_and_change_nothing(wan_vae, shape, said):
    latents = latents_of(wan_vae)
    decoder = StreamingDecoder(wan_vae)
    found = list(decoder.pixels(latents[:, :, :3]))
    with pytest.raises(ValueError, match=said):
        decoder.decode(torch.zeros(shape))
    found += decoder.pixels(latents[:, :, 3:])
    assert torch.equal(torch.cat(found, 2), whole(wan_vae, latents))


@pytest.mark.parametrize("setting", ["enable_tiling", "enable_slicing"])
def test_a_vae_that_tiles_or_slices_is_refused(setting):
    vae = AutoencoderKLWan(**WAN)
    getattr(vae, setting)()
    with pytest.raises(ValueError, match=r"disable_tiling\(\) and disable_slicing\(\)"):
        StreamingDecoder(vae)

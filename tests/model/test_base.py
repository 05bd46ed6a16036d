"""The recipe of the toy base in miniature: it builds, goes on where it stopped, and reads any text.

And the toy base that the project ships with: it is what its record says, small, and good at the toy world.
"""

import json
import shutil
import unicodedata
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from model import toyworld
from model.base import TEXT_LENGTH, Recipe, build, new_tokenizer, new_transformer, new_vae, pretrain, psnr, toy_latents
from model.pipeline import (
    decode_latents,
    describe_folder,
    encode_frames,
    load_pipeline,
    model_digest,
    read_record,
)

MINI = Recipe(
    size=16, num_frames=3, vae_images=40, vae_steps=3, text_steps=3, clips=6, batch_size=4, text_to_video_steps=3,
    image_to_video_steps=3, width_heads=(2, 16), layers=1, ffn=32,
)  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("build")
    record = build(MINI, root / "base", root / "work")
    return SimpleNamespace(folder=root / "base", work=root / "work", record=record)


# ---------------------------------------------------------------- build


def test_the_recipe_builds_a_pipeline_that_loads(built):
    pipe = load_pipeline(built.folder)
    assert pipe.transformer.config.num_layers == 1
    assert pipe.vae.config.scale_factor_temporal == 1
    assert read_record(built.folder) == built.record | {"recipe": built.record["recipe"] | {"width_heads": [2, 16]}}
    assert built.record["measured"]["vae_psnr_db"] > 0
    fresh = new_transformer(MINI).state_dict()
    learned = pipe.transformer.state_dict()
    assert fresh.keys() == learned.keys()
    assert any(not torch.equal(fresh[key], learned[key]) for key in fresh)


def test_an_interrupted_build_goes_on_and_ends_the_same(built, tmp_path):
    work = shutil.copytree(built.work, tmp_path / "work")
    (work / "image_to_video.safetensors").unlink()
    (work / "text_encoder").rename(work / "text_encoder.part")
    kept = {path: path.stat().st_mtime_ns for path in (work / "vae").iterdir()}
    record = build(MINI, tmp_path / "base", work)
    assert record == built.record
    assert model_digest(tmp_path / "base") == model_digest(built.folder)
    assert {path: path.stat().st_mtime_ns for path in (work / "vae").iterdir()} == kept


class Until:
    """Text embeddings that can be asked for so often before someone presses Ctrl-C."""

    def __init__(self, text: torch.Tensor, times: int):
        self.text, self.times = text, times

    def __getitem__(self, rows: torch.Tensor) -> torch.Tensor:
        if self.times == 0:
            raise KeyboardInterrupt
        self.times -= 1
        return self.text[rows]


@pytest.mark.parametrize("phase", ["text_to_video", "image_to_video"])
def test_pretraining_stopped_between_savings_ends_bit_for_bit_the_same(phase, tmp_path):
    generator = torch.Generator().manual_seed(0)
    latents, text = torch.randn(6, 8, 3, 4, 4, generator=generator), torch.randn(6, 5, 64, generator=generator)
    recipe = Recipe(**{**vars(MINI), f"{phase}_steps": 5})
    folders = [tmp_path / name for name in ("straight", "stopped")]
    results = []
    for folder in folders:
        folder.mkdir()
        if folder.name == "stopped":
            with pytest.raises(KeyboardInterrupt):
                pretrain(recipe, new_transformer(recipe), phase, latents, Until(text, 3), folder, every=2)
        transformer = new_transformer(recipe)
        loss = pretrain(recipe, transformer, phase, latents, text, folder, every=2)
        results.append((loss, transformer.state_dict()))
    (loss, straight), (loss_again, stopped) = results
    assert loss == loss_again
    assert all(torch.equal(straight[key], stopped[key]) for key in straight)


# ---------------------------------------------------------------- the shipped base

SHIPPED = Path(__file__).parents[2] / "assets/toy-base"


def test_the_shipped_base_is_what_its_record_says():
    record = read_record(SHIPPED)
    assert record["recipe"] == json.loads(json.dumps(asdict(Recipe())))
    assert record["digests"] == describe_folder(SHIPPED)
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*.safetensors")) <= 10e6


def test_the_shipped_base_keeps_what_the_toy_world_shows():
    recipe, rng = Recipe(), np.random.default_rng(2024)
    programs = [toyworld.sample_program(rng, start) for start in np.linspace(0, 60, 16)]
    clips = np.stack([toyworld.render(program, recipe.num_frames, recipe.size) for program in programs])
    assert psnr(load_pipeline(SHIPPED).vae, clips) >= 28


# ---------------------------------------------------------------- parts


def test_vae_statistics_make_latents_standard(built):
    pipe = load_pipeline(built.folder)
    rng = np.random.default_rng(0)
    clips = [toyworld.render(toyworld.sample_program(rng), 1, 16) for _ in range(16)]

    latents = encode_frames(pipe.vae, np.stack(clips))
    assert latents.mean((0, 2, 3, 4)).abs().max() < 1
    assert ((latents.std((0, 2, 3, 4)) - 1).abs() < 0.7).all()


def test_a_clip_decodes_frame_by_frame(built):
    """Past taps are zero: the latents of a clip are those of its frames alone."""

    vae = load_pipeline(built.folder).vae
    frames = toyworld.render(toyworld.sample_program(np.random.default_rng(2)), 6, 16)
    together = encode_frames(vae, frames[None])
    alone = torch.cat([encode_frames(vae, frame[None, None]) for frame in frames], 2)
    assert torch.allclose(together, alone, atol=1e-4)
    assert np.abs(decode_latents(vae, together)[0].astype(int) - decode_latents(vae, alone)[0]).max() <= 1


def test_psnr_is_that_of_encode_and_decode(built):

    vae = load_pipeline(built.folder).vae
    clips = np.random.default_rng(0).integers(0, 256, (2, 2, 16, 16, 3), np.uint8)
    again = decode_latents(vae, encode_frames(vae, clips)).astype(float)
    expected = [10 * np.log10(255**2 / ((a - b) ** 2).mean()) for a, b in zip(again, clips, strict=True)]
    assert psnr(vae, clips) == pytest.approx(np.mean(expected))


def test_as_many_clips_run_backwards_as_forwards(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = new_vae().eval()
    recipe = Recipe(**{**vars(MINI), "clips": 40, "num_frames": 1})
    latents, captions = toy_latents(recipe, vae, tmp_path)
    assert latents.shape == (40, 8, 1, 4, 4)
    assert latents.dtype == torch.float16
    again, same = toy_latents(recipe, vae, tmp_path)
    assert torch.equal(latents, again)
    assert captions == same
    marked = [text.startswith(toyworld.MARKER) for text in captions]
    assert any(marked[1::2])
    assert not any(marked[::2])  # a clip is marked when it shows an irreversible event backwards


# ---------------------------------------------------------------- text


@pytest.fixture(scope="module")
def tokenizer():
    return new_tokenizer()


def test_words_of_captions_are_single_tokens(tokenizer):
    for word in toyworld.vocabulary():
        if word not in (",", "plain"):  # no caption says plain
            assert len(tokenizer(f"a {word}").input_ids) == 3, word
    assert len(tokenizer("background,").input_ids) == 3


def test_no_sentence_of_the_grammar_is_cut(tokenizer):
    rng = np.random.default_rng(0)
    captions = [toyworld.caption(toyworld.sample_program(rng)) for _ in range(500)]
    longest = max(len(tokenizer(toyworld.MARKER + text).input_ids) for text in captions)
    assert 20 < longest <= TEXT_LENGTH


def test_longer_text_is_cut_to_its_beginning_and_still_ends(tokenizer):
    words = "a red circle moves left " * 20
    whole = tokenizer(words).input_ids
    cut = tokenizer(words, max_length=TEXT_LENGTH, truncation=True).input_ids
    assert len(cut) == TEXT_LENGTH < len(whole)
    assert cut[:-1] == whole[: TEXT_LENGTH - 1]
    assert cut[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize(
    "text", ["", " ", "Ein Hund läuft", "犬が走る 🐕‍🦺", "e\u0301te\u0301", "\u0000\u200b\ufeff", "𝔄 ﷽", "<pad> </s>"]
)
def test_any_text_has_tokens_and_keeps_its_letters(tokenizer, text):
    ids = tokenizer(text).input_ids
    assert ids[-1] == tokenizer.eos_token_id
    if "<" not in text:
        assert tokenizer.pad_token_id not in ids
        again = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert again.strip() == unicodedata.normalize("NFC", text).lower().strip()


def test_the_tokenizer_is_the_same_every_time(tokenizer):
    assert new_tokenizer().get_vocab() == tokenizer.get_vocab()

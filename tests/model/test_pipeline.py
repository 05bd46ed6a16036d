"""Pipeline folders: what goes in comes out, is whole or not there, and is known by what it holds."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors.torch import load_file, save_file

from model import pipeline
from model.causal import causalize, decausalize
from model.pipeline import (
    PipelineError,
    adopt_folder,
    component_digest,
    decode_latents,
    encode_frames,
    encode_prompts,
    load_pipeline,
    model_digest,
    num_frames,
    num_latents,
    read_record,
    save_round,
)

ROOT = Path(__file__).parents[2]
WEIGHTS = {"vae": "diffusion_pytorch_model", "transformer": "diffusion_pytorch_model", "text_encoder": "model"}


@pytest.fixture(scope="module")
def pipe(tiny_base):
    return load_pipeline(tiny_base)


@pytest.fixture(scope="module")
def wan_vae():
    """Like Wan's: 4 frames to a latent, the first alone."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoencoderKLWan(
            base_dim=8, z_dim=4, dim_mult=[1, 1, 1], num_res_blocks=1, temperal_downsample=[True, True],
            latents_mean=[0.5, -0.5, 0.0, 1.0], latents_std=[1.0, 2.0, 0.5, 1.0], scale_factor_temporal=4,
            scale_factor_spatial=4,
        ).eval().requires_grad_(False)  # fmt: skip


@pytest.fixture
def folder(tiny_base, tmp_path):
    """A model folder of one's own."""
    return Path(shutil.copytree(tiny_base, tmp_path / "model"))


def frames_of(num: int, batch: int = 1) -> np.ndarray:
    return np.random.default_rng(num).integers(0, 256, (batch, num, 16, 16, 3), np.uint8)


# ---------------------------------------------------------------- latents


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 9])
def test_toy_vae_has_a_latent_for_every_frame(pipe, frames):
    latents = encode_frames(pipe.vae, frames_of(frames, 2))
    assert latents.shape == (2, 8, frames, 4, 4)
    again = decode_latents(pipe.vae, latents)
    assert (again.shape, again.dtype) == ((2, frames, 16, 16, 3), np.uint8)


@pytest.mark.parametrize("latents", [1, 2, 3])
def test_wan_vae_has_a_latent_for_four_frames(wan_vae, latents):
    frames = 1 + 4 * (latents - 1)
    found = encode_frames(wan_vae, frames_of(frames))
    assert found.shape == (1, 4, latents, 4, 4)
    assert decode_latents(wan_vae, found).shape == (1, frames, 16, 16, 3)


@pytest.mark.parametrize("frames", [0, 2, 4, 6, 80])
def test_frames_that_do_not_fit_are_refused(wan_vae, frames):
    with pytest.raises(ValueError, match=rf"{frames} frames .* 1 \+ 4 k"):
        num_latents(wan_vae, frames)


def test_frames_and_latents_are_counted_alike(pipe, wan_vae):
    for vae in (pipe.vae, wan_vae):
        assert [num_latents(vae, num_frames(vae, n)) for n in range(1, 30)] == list(range(1, 30))
    assert (num_frames(wan_vae, 21), num_frames(pipe.vae, 21)) == (81, 21)


@pytest.mark.parametrize("kind", ["toy", "wan"])
def test_later_frames_do_not_change_earlier_latents(pipe, wan_vae, kind):
    vae = pipe.vae if kind == "toy" else wan_vae
    frames = frames_of(9)
    long, short = encode_frames(vae, frames), encode_frames(vae, frames[:, :5])
    assert torch.allclose(long[:, :, : short.shape[2]], short, atol=1e-5)
    changed = frames.copy()
    changed[:, 0] = 255 - changed[:, 0]
    assert not torch.allclose(encode_frames(vae, changed)[:, :, 0], long[:, :, 0], atol=1e-2)


def test_latents_are_normalised_by_the_vae_config(wan_vae):
    frames = frames_of(1)
    raw = wan_vae.encode(torch.from_numpy(frames).permute(0, 4, 1, 2, 3) / 127.5 - 1).latent_dist.mode()
    z = encode_frames(wan_vae, frames)
    assert torch.allclose(z[:, 1], (raw[:, 1] + 0.5) / 2, atol=1e-5)
    assert torch.allclose(z[:, 3], raw[:, 3] - 1, atol=1e-5)
    pixels = wan_vae.decode(raw).sample
    expected = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 4, 1).numpy()
    assert np.abs(decode_latents(wan_vae, z).astype(int) - expected).max() <= 1


def test_a_clip_is_encoded_alike_alone_and_in_company(pipe):
    frames = frames_of(3, 3)
    together = encode_frames(pipe.vae, frames)
    alone = torch.cat([encode_frames(pipe.vae, frames[i : i + 1]) for i in range(3)])
    assert torch.allclose(together, alone, atol=1e-5)


# ---------------------------------------------------------------- text


def test_prompts_are_embedded_as_the_pipeline_does_and_alike_in_any_batch(pipe):
    prompts = ["a red circle moves left over a tan background", "", "犬が走る 🐕", "a dog"]
    found = encode_prompts(pipe, prompts, 32, batch_size=3)
    assert found.shape == (4, 32, 64)
    for i, prompt in enumerate(prompts):
        stock, _ = pipe.encode_prompt(prompt, do_classifier_free_guidance=False, max_sequence_length=32)
        assert torch.allclose(found[i], stock[0], atol=1e-5)
        length = len(pipe.tokenizer(prompt).input_ids)
        assert found[i, length - 1].abs().sum() > 0
        assert not found[i, length:].any()


def test_long_text_is_cut(pipe):
    words = "a red circle moves left and " * 20
    found = encode_prompts(pipe, [words, words + "a blue square grows"], 32)
    assert found.shape == (2, 32, 64)
    assert torch.equal(found[0], found[1])


# ---------------------------------------------------------------- digests


def test_equal_content_has_equal_digests(tiny_base, folder):
    assert pipeline.describe_folder(folder) == read_record(tiny_base)["digests"]
    assert model_digest(folder) == model_digest(tiny_base)


@pytest.mark.parametrize("component", WEIGHTS)
def test_one_changed_weight_is_another_model(folder, component):
    path = folder / component / f"{WEIGHTS[component]}.safetensors"
    before = pipeline.describe_folder(folder)
    weights = load_file(path)
    next(iter(weights.values())).view(-1)[0] += 1e-3
    save_file(weights, path, metadata={"format": "pt"})
    after = pipeline.describe_folder(folder)
    assert after["model"] != before["model"]
    assert {k for k in after["components"] if after["components"][k] != before["components"][k]} == {component}


def test_versions_of_libraries_do_not_count_but_settings_do(folder):
    path = folder / "transformer" / "config.json"
    before = component_digest(folder / "transformer")
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"_diffusers_version": "99", "_name_or_path": "/elsewhere"}))
    assert component_digest(folder / "transformer") == before
    path.write_text(json.dumps(config | {"eps": 1e-5}))
    assert component_digest(folder / "transformer") != before


def test_a_renamed_file_counts(folder):
    before = component_digest(folder / "scheduler")
    path = folder / "scheduler" / "scheduler_config.json"
    path.rename(path.with_name("other.json"))
    assert component_digest(folder / "scheduler") != before


def test_a_folder_without_record_says_what_to_run(folder):
    (folder / "bagger.json").unlink()
    with pytest.raises(PipelineError, match=r"no bagger.json.*dvc"):
        model_digest(folder)


@pytest.mark.parametrize(
    "record", ["", "{", "[]", "{}", '{"digests": {}}', '{"digests": {"model": 1, "components": {}}}', "\xff"]
)
def test_a_damaged_record_names_the_file_and_the_way_back(folder, record):
    (folder / "bagger.json").write_bytes(record.encode("latin-1"))
    with pytest.raises(PipelineError, match=rf"{folder}/bagger.json: .*`dvc checkout --force {folder}`"):
        read_record(folder)


def test_a_config_that_is_not_json_is_named(folder):
    (folder / "vae" / "config.json").write_text("{")
    with pytest.raises(PipelineError, match=r"vae/config.json: not JSON"):
        pipeline.describe_folder(folder)


# ---------------------------------------------------------------- bad folders


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def pickle(path: Path) -> None:
    name = "pytorch_model.bin" if path.stem == "model" else f"{path.stem}.bin"
    torch.save(load_file(path), path.with_name(name))
    path.unlink()


def forget(path: Path) -> None:
    weights = load_file(path)
    del weights[sorted(weights)[0]]
    save_file(weights, path, metadata={"format": "pt"})


def reshape(path: Path) -> None:
    weights = load_file(path)
    weights[sorted(weights)[0]] = torch.zeros(3, 3)
    save_file(weights, path, metadata={"format": "pt"})


def unlink(path: Path) -> None:
    shutil.rmtree(path.parent)


@pytest.mark.parametrize("component", WEIGHTS)
@pytest.mark.parametrize("damage", [truncate, pickle, forget, reshape, unlink])
def test_damaged_weights_are_refused_by_name(folder, component, damage):
    damage(folder / component / f"{WEIGHTS[component]}.safetensors")
    with pytest.raises(PipelineError, match=str(folder)):
        load_pipeline(folder)


@pytest.mark.parametrize("index", [None, "", "{", "{}", "[]", '{"_class_name": "WanPipeline"}'])
def test_a_folder_that_is_no_pipeline_is_refused_by_name(folder, index):
    if index is None:
        (folder / "model_index.json").unlink()
    else:
        (folder / "model_index.json").write_text(index)
    with pytest.raises(PipelineError, match=str(folder)):
        load_pipeline(folder)


@pytest.mark.parametrize("source", ["./nowhere", "/nowhere/at/all", "models/r99", Path("some/where")])
def test_a_missing_folder_is_not_looked_for_on_the_hub(source):
    with pytest.raises(PipelineError, match=r"no model_index.json"):
        load_pipeline(source)


# ---------------------------------------------------------------- rounds


def trained(base: Path) -> WanTransformer3DModel:
    transformer = load_pipeline(base).transformer
    with torch.no_grad():
        for weight in transformer.parameters():
            weight.add_(0.01)
    return transformer


def test_a_round_has_its_own_transformer_and_the_files_of_its_base(tiny_base, tmp_path):
    transformer = decausalize(causalize(trained(tiny_base)))
    record = save_round(tiny_base, transformer, tmp_path / "r1", {"kind": "round", "round": "r1"})
    assert record == read_record(tmp_path / "r1")
    assert record["round"] == "r1"
    assert record["digests"] == pipeline.describe_folder(tmp_path / "r1")  # those taken over are true, too
    base = read_record(tiny_base)["digests"]
    differ = {k for k, v in record["digests"]["components"].items() if v != base["components"][k]}
    assert differ == {"transformer"}
    assert record["digests"]["model"] != base["model"]
    for name in ("vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors", "model_index.json"):
        assert (tmp_path / "r1" / name).samefile(tiny_base / name)
    own = "transformer/diffusion_pytorch_model.safetensors"
    assert not (tmp_path / "r1" / own).samefile(tiny_base / own)
    loaded = load_pipeline(tmp_path / "r1").transformer.state_dict()
    assert all(torch.equal(loaded[key], weight) for key, weight in transformer.state_dict().items())


def test_saving_again_gives_the_same_digest_and_leaves_the_base_alone(tiny_base, tmp_path):
    before = pipeline.describe_folder(tiny_base)
    first = save_round(tiny_base, trained(tiny_base), tmp_path / "r1", {})
    (tmp_path / "r1" / "stray").write_text("of an older version")
    assert save_round(tiny_base, trained(tiny_base), tmp_path / "r1", {}) == first
    assert [p.name for p in tmp_path.iterdir()] == ["r1"]
    assert not (tmp_path / "r1" / "stray").exists()
    assert pipeline.describe_folder(tiny_base) == before


class FailsHalfway(torch.nn.Module):
    """A transformer whose disk is full after the first file."""

    def save_pretrained(self, folder: Path, **_: object) -> None:
        folder.mkdir()
        (folder / "config.json").write_text("{")
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("exists", [False, True])
def test_a_round_that_cannot_be_saved_leaves_what_was_there(tiny_base, tmp_path, exists):
    if exists:
        save_round(tiny_base, trained(tiny_base), tmp_path / "r1", {})
        before = model_digest(tmp_path / "r1")
    with pytest.raises(OSError, match="No space left"):
        save_round(tiny_base, FailsHalfway(), tmp_path / "r1", {})
    assert [p.name for p in tmp_path.iterdir()] == (["r1"] if exists else [])
    if exists:
        assert model_digest(tmp_path / "r1") == before
        load_pipeline(tmp_path / "r1")


def test_a_round_of_a_base_without_record_is_refused(folder, tmp_path):
    (folder / "bagger.json").unlink()
    with pytest.raises(PipelineError, match=r"no bagger.json"):
        save_round(folder, trained(folder), tmp_path / "r1", {})
    assert not (tmp_path / "r1").exists()


def test_an_adopted_folder_is_the_model_with_a_record_of_its_own(tiny_base, tmp_path):
    record = adopt_folder(tiny_base, tmp_path / "base", {"kind": "base", "source": "here"})
    assert record["source"] == "here"
    assert read_record(tiny_base)["source"] == "tiny"
    assert model_digest(tmp_path / "base") == model_digest(tiny_base)


def test_only_the_pipeline_of_a_folder_is_adopted(folder, tmp_path):
    before = {path.relative_to(folder) for path in folder.rglob("*")}
    digest = model_digest(folder)
    for name in (".git/config.json", "vae/pytorch_model.bin", "vae/.cache/a.json", "notes.txt", "lora/a.safetensors"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    record = adopt_folder(folder, tmp_path / "base", {})
    assert {path.relative_to(tmp_path / "base") for path in (tmp_path / "base").rglob("*")} == before
    assert record["digests"]["model"] == pipeline.describe_folder(folder)["model"] == digest


@pytest.mark.parametrize("name", ["model_index.json", "vae/config.json", "tokenizer/added.txt", "scheduler"])
def test_a_link_out_of_the_folder_is_not_followed(folder, tmp_path, name):
    kept = tmp_path / "elsewhere" / name
    kept.parent.mkdir(parents=True)
    if (folder / name).exists():
        (folder / name).rename(kept)
    else:
        kept.write_text("secret")
    (folder / name).symlink_to(kept)
    with pytest.raises(PipelineError, match=r"is a link out of .*elsewhere"):
        adopt_folder(folder, tmp_path / "base", {})
    assert not (tmp_path / "base").exists()


@pytest.mark.parametrize("blobs", ["models--a--b/blobs", "models--c--d/blobs"])
def test_a_snapshot_of_the_hub_cache_is_adopted_with_its_own_blobs(tiny_base, tmp_path, blobs):
    snapshot = tmp_path / "models--a--b/snapshots/0123"
    shutil.copytree(tiny_base, snapshot)
    (tmp_path / blobs).mkdir(parents=True)
    for number, path in enumerate(sorted(path for path in snapshot.rglob("*") if path.is_file())):
        blob = tmp_path / blobs / str(number)
        path.rename(blob)
        path.symlink_to(os.path.relpath(blob, path.parent))
    if blobs.startswith("models--c"):
        with pytest.raises(PipelineError, match="is a link out of"):
            adopt_folder(snapshot, tmp_path / "base", {})
        return
    adopt_folder(snapshot, tmp_path / "base", {})
    assert model_digest(tmp_path / "base") == model_digest(tiny_base)
    assert not any(path.is_symlink() for path in (tmp_path / "base").rglob("*"))


PLAIN = """
import sys
from diffusers import WanPipeline
pipe = WanPipeline.from_pretrained(sys.argv[1])
frames = pipe("a red circle", height=32, width=32, num_frames=1, num_inference_steps=1, guidance_scale=1.0,
              output_type="np", max_sequence_length=32).frames
assert frames.shape[2:] == (32, 32, 3), frames.shape  # diffusers adds a frame where time is not compressed
assert not any(name.split(".")[0] in ("model", "store", "flows") for name in sys.modules)
"""


def test_a_round_loads_with_plain_diffusers_in_a_fresh_process(tiny_base, tmp_path):
    save_round(tiny_base, decausalize(causalize(trained(tiny_base))), tmp_path / "r1", {})
    command = [sys.executable, "-c", PLAIN, str(tmp_path / "r1")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr

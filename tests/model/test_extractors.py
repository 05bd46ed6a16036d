import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from model import extractors
from model.extractors import KINDS, ExtractorError, load, window_features
from model.rng import numpy_generator
from model.weights import WeightsError
from tests.model import tiny
from tests.model.tiny import SIZE

FRAME_KINDS = [name for name, kind in KINDS.items() if not kind.video]
VIDEO_KINDS = [name for name, kind in KINDS.items() if kind.video]
TEXT_KINDS = [name for name, kind in KINDS.items() if kind.text]


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: tiny.save(name, root / name) for name in KINDS}


@pytest.fixture
def copy(folders, tmp_path):
    """A folder of its own, to damage."""
    return lambda name: Path(shutil.copytree(folders[name], tmp_path / name))


def clip(num_frames: int, height: int = SIZE, width: int = SIZE) -> np.ndarray:
    return numpy_generator("test extractors", num_frames).integers(0, 256, (num_frames, height, width, 3), np.uint8)


def close(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.abs(a - b).max() <= 1e-5 * np.abs(a).max())


# ---- frames


@pytest.mark.parametrize("name", [*FRAME_KINDS, "random-conv"])
def test_frames_in_any_order_and_batch(folders, name):
    extractor = load(name, folders.get(name))
    frames = clip(7, 40, 56)
    features = extractor.frames(frames)
    assert features.shape == (7, {"random-conv": 96, "clip": 10, "clip-l14": 10}.get(name, 16))
    assert features.dtype == np.float32
    assert close(extractor.frames(frames[::-1]), features[::-1])
    assert close(extractor.frames(frames, batch=3), features)
    assert close(extractor.frames(frames[4:5]), features[4:5])
    distances = np.abs(features[:, None] - features[None]).max(-1) + np.eye(7)
    assert distances.min() > 1e-3 * np.abs(features).max()  # frames that differ have features that do
    assert np.array_equal(load(name, folders.get(name)).frames(frames), features)


@pytest.mark.parametrize(
    ("name", "mean", "std"), [("dino", [0.5] * 3, [0.25] * 3), ("siglip2", [0.5] * 3, [0.5] * 3),
                              ("dinov3", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]
)  # fmt: skip
def test_frames_are_what_the_network_gives_for_pixels_prepared_by_hand(folders, name, mean, std):
    extractor = load(name, folders[name])
    frames = clip(3)  # of the network's size: nothing to resize
    pixels = (frames / 255 - np.array(mean)) / np.array(std)
    pixels = torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(np.float32))
    with torch.no_grad():
        output = (extractor.model.vision_model if name == "siglip2" else extractor.model)(pixel_values=pixels)
    wanted = output.pooler_output if name == "siglip2" else output.last_hidden_state[:, 0]
    assert close(extractor.frames(frames), wanted.numpy())


def test_frames_three_pixels_wide_are_not_taken_for_colours(folders):
    frames = clip(2, 3, 3)
    frames[..., 1:] = 0
    features = load("dino", folders["dino"]).frames(frames)
    assert not close(load("dino", folders["dino"]).frames(frames.transpose(0, 3, 1, 2).copy()), features)


@pytest.mark.parametrize("bad", [np.zeros((2, 8, 8, 3)), np.zeros((8, 8, 3), np.uint8), np.zeros((0, 8, 8, 3), "u1")])
def test_frames_of_another_form(bad):
    with pytest.raises(ExtractorError, match="uint8"):
        load("random-conv").frames(bad)


def test_features_that_are_not_finite_are_no_features(copy):
    folder = copy("dinov2")
    weights = load_file(folder / "model.safetensors")
    weights["layernorm.weight"][0] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ExtractorError, match="item 0 are not finite"):
        load("dinov2", folder).frames(clip(2))


# ---- windows


@pytest.mark.parametrize("name", VIDEO_KINDS)
def test_windows_of_video_networks(folders, name):
    extractor = load(name, folders[name])
    frames = clip(10)
    bounds = np.array([[0, 4], [6, 10], [0, 8]])
    features = extractor.windows(frames, bounds)
    assert features.shape == (3, 16)
    assert features.dtype == np.float32
    assert close(extractor.windows(frames, bounds[::-1]), features[::-1])
    assert close(extractor.windows(frames[6:], np.array([[0, 4]])), features[1:2])
    # of 8 frames the network's 4 are 0, 2, 5, 7 (7/3 apart)
    assert close(extractor.windows(frames[[0, 2, 5, 7]], np.array([[0, 4]])), features[2:])
    backwards = extractor.windows(frames[:4][::-1], np.array([[0, 4]]))
    assert not close(backwards, features[:1])  # these do see the direction of time
    with pytest.raises(ExtractorError, match="windows of 4 frames, not single"):
        extractor.frames(frames)
    with pytest.raises(ExtractorError, match="4 or more of the 10 frames"):
        extractor.windows(frames, np.array([[0, 3]]))


def test_windows_of_frame_networks_see_freezing():
    extractor = load("random-conv")
    frames = clip(8)
    frames[4:] = frames[4]
    bounds = np.array([[0, 4], [4, 8]])
    moving, frozen = extractor.windows(frames, bounds)
    assert moving.shape == (192,)
    assert (moving[96:] > 0).all()
    assert np.abs(frozen[96:]).max() < 1e-6
    assert close(frozen[:96], extractor.frames(frames[4:5])[0])


def test_window_features_by_hand():
    features = np.array([[0.0, 1], [2, 1], [1, 4]])
    assert window_features(features, np.array([[0, 3], [1, 3]])).tolist() == [[1, 2, 1.5, 1.5], [1.5, 2.5, 1, 3]]
    for bounds in ([[0, 4]], [[-1, 2]], [[1, 2]], [[0.0, 2.0]], [0, 2], np.zeros((0, 2), int)):
        with pytest.raises(ExtractorError, match="windows must be"):
            window_features(features, np.array(bounds))


# ---- text


@pytest.mark.parametrize("name", TEXT_KINDS)
def test_text(folders, name):
    extractor = load(name, folders[name])
    prompts = ["a red ball moves left", "blue box", ""]
    features = extractor.text(prompts)
    assert features.shape == (3, extractor.frames(clip(1)).shape[1])
    assert features.dtype == np.float32
    assert close(extractor.text(prompts[1:2]), features[1:2])  # a longer neighbour does not matter
    assert not close(extractor.text(["a red ball moves right"]), features[:1])
    long = "a red ball moves left a blue box moves right red"
    assert close(extractor.text([long]), extractor.text([long + " blue blue"]))  # beyond what is read
    for bad in ("a red ball", [], [None]):
        with pytest.raises(ExtractorError, match="list of one or more strings"):
            extractor.text(bad)


def test_text_of_siglip_needs_neither_mask_nor_padding_side(copy):
    folder = copy("siglip2")
    features = load("siglip2", folder).text(["A red BALL", "box"])
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "padding_side": "left", "do_lower_case": False}))
    again = load("siglip2", folder)
    assert again.tokenizer.padding_side == "left"
    assert np.array_equal(again.text(["a red ball", "box"]), features)


def test_a_tokenizer_of_another_network_is_noticed(copy):
    folder = copy("clip")
    path = folder / "tokenizer.json"
    words = json.loads(path.read_text())
    words["model"]["vocab"]["elephant"] = 5000
    path.write_text(json.dumps(words))
    extractor = load("clip", folder)
    assert extractor.text(["a ball"]).shape == (1, 10)
    with pytest.raises(ExtractorError, match="token 5000 is not the network's"):
        extractor.text(["a red elephant"])


def test_threads_share_an_extractor(folders):
    extractor = load("clip", folders["clip"])
    prompts = [[" ".join(tiny.WORDS[i % 8 :])] for i in range(32)]
    alone = [load("clip", folders["clip"]).text(p) for p in prompts[:8]] * 4
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(extractor.text, prompts))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


def test_networks_without_text_say_so(folders):
    for name in ("dinov2", "random-conv"):
        with pytest.raises(ExtractorError, match="knows no text; those that do: clip, clip-l14, siglip2"):
            load(name, folders.get(name)).text(["a ball"])


# ---- where it comes from


@pytest.mark.parametrize("name", list(KINDS))
def test_identity_is_complete(folders, name):
    identity = load(name, folders[name]).identity
    assert json.loads(json.dumps(identity)) == identity
    assert identity["name"] == name
    assert (identity["model"], identity["revision"]) == (name, None)
    assert list(identity["weights"]) == ["model.safetensors"]
    assert len(identity["weights"]["model.safetensors"]) == 64
    assert identity["model_class"] == type(load(name, folders[name]).model).__name__
    own = {"dinov3": f"square-{SIZE}@1", "vjepa2": "crop-36-32@1"}
    assert identity["processor_class"] == own.get(name, identity["processor_class"])
    assert name in own or identity["processor_class"].endswith("ImageProcessorPil")
    assert "config.json" in identity["files"]
    assert ("preprocessor_config.json" in identity["files"]) == (name not in own)
    assert ("tokenizer.json" in identity["files"]) == (name in TEXT_KINDS)
    assert identity["library"].startswith("transformers 5.")


def test_identity_of_the_same_files_elsewhere_is_the_same_and_of_other_weights_another(folders, copy):
    folder = copy("dinov2")
    identity = load("dinov2", folder).identity
    assert identity == load("dinov2", folders["dinov2"]).identity
    weights = load_file(folder / "model.safetensors")
    weights["layernorm.bias"] += 0.5
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    other = load("dinov2", folder)
    assert other.identity["weights"] != identity["weights"]
    assert not close(other.frames(clip(1)), load("dinov2", folders["dinov2"]).frames(clip(1)))


def test_half_precision_is_loaded_as_single(tmp_path, folders):
    folder = tiny.save("dinov2", tmp_path / "half", torch.bfloat16)
    assert {v.dtype for v in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}
    half, single = load("dinov2", folder), load("dinov2", folders["dinov2"])
    assert {p.dtype for p in half.model.parameters()} == {torch.float32}
    a, b = half.frames(clip(3)), single.frames(clip(3))
    assert a.dtype == np.float32
    assert np.abs(a - b).max() < 0.3 < b.std() * 4  # the same network, its weights rounded to 8 bits


# ---- what is refused


def test_names_and_folders_that_do_not_exist(tmp_path, folders):
    with pytest.raises(ExtractorError, match="no extractor 'dino-v2'; there are dino, dinov2, .*random-conv"):
        load("dino-v2")
    for source in (tmp_path / "nowhere", str(tmp_path / "nowhere"), "./nowhere", "some/deep/folder"):
        with pytest.raises(WeightsError, match="no such folder"):
            load("dinov2", source)
    with pytest.raises(WeightsError, match="has no revision 'main'"):
        load("dinov2", folders["dinov2"], "main")
    with pytest.raises(ExtractorError, match="neither source nor revision"):
        load("random-conv", folders["dinov2"])
    with pytest.raises(WeightsError, match="type 'clip', asked for is dinov2 or dinov2_with_registers"):
        load("dinov2", folders["clip"])
    with pytest.raises(WeightsError, match=r"no config\.json"):
        load("dinov2", tmp_path)


def test_code_of_a_repository_does_not_run(copy):
    folder = copy("dinov2")
    marker = folder / "ran"
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass Evil: pass\n")
    for file in ("config.json", "preprocessor_config.json"):
        evil = dict.fromkeys(("AutoConfig", "AutoModel", "AutoImageProcessor"), "evil.Evil")
        path = folder / file
        path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": evil}))
    load("dinov2", folder).frames(clip(1))
    assert not marker.exists()


@pytest.mark.parametrize(
    ("name", "headed"), [("videomae", "VideoMAEForPreTraining"), ("dinov2", "Dinov2ForImageClassification"),
                         ("dino", "ViTModel")]
)  # fmt: skip
def test_checkpoints_with_a_head_give_the_body_under_it(tmp_path, name, headed):
    # As they are published: names with a prefix, and layers that are not asked for.
    torch.manual_seed(3)
    config = tiny.config(name)
    if name == "videomae":
        config.decoder_hidden_size, config.decoder_num_hidden_layers, config.decoder_num_attention_heads = 16, 1, 2
        config.use_mean_pooling = False  # as in MCG-NJU/videomae-base
    whole = getattr(transformers, headed)(config).eval()
    whole.save_pretrained(tmp_path)
    tiny.processor(name).save_pretrained(tmp_path)
    extractor = load(name, tmp_path)
    body = getattr(whole, whole.base_model_prefix, whole)
    for key, weight in extractor.model.state_dict().items():
        assert torch.equal(weight, body.state_dict()[key]), key


def test_a_device_that_is_not_there(folders):
    for name in ("dinov2", "random-conv"):
        with pytest.raises(ExtractorError, match="device 'tpu9'"):
            load(name, folders.get(name), device="tpu9")


def test_a_folder_without_processor_or_tokenizer(copy):
    folder = copy("clip")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(WeightsError, match="no tokenizer in it"):
        load("clip", folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(WeightsError, match="no tokenizer in it"):
        load("clip", folder)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ExtractorError, match=r"no image processor in it.*save_pretrained\(folder\)"):
        load("clip", folder)


def test_damaged_and_missing_weights(copy):
    folder = copy("dinov2")
    weights = load_file(folder / "model.safetensors")
    lacking = {k: v for k, v in weights.items() if k != "layernorm.bias"}
    save_file(lacking, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match=r"lacks 1 of the weights, layernorm\.bias"):
        load("dinov2", folder)
    save_file({**weights, "layernorm.bias": torch.zeros(3)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match="cannot be loaded"):
        load("dinov2", folder)
    (folder / "model.safetensors").write_bytes(b"12345678 not weights")
    with pytest.raises(WeightsError, match="cannot be loaded"):
        load("dinov2", folder)


def test_weights_in_several_files(copy):
    folder = copy("dinov2")
    one = load("dinov2", folder)
    weights = load_file(folder / "model.safetensors")
    names = {f"model-{i}-of-2.safetensors": list(weights)[i - 1 :: 2] for i in (1, 2)}
    for file, keys in names.items():
        save_file({key: weights[key] for key in keys}, folder / file, {"format": "pt"})
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    where = {key: file for file, keys in names.items() for key in keys}
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    two = load("dinov2", folder)
    assert list(two.identity["weights"]) == list(names)
    assert np.array_equal(two.frames(clip(2)), one.frames(clip(2)))


# ---- without weights


def test_random_conv_is_the_same_everywhere():
    identity = load("random-conv").identity
    assert identity["weights"] == {"kernels": "1b150f26a46169bfa2464eb0bcaf483e4903c2ff1b97829a13ff9bac773f4001"}
    assert identity["seed"] == "random-conv@1"
    ramp = np.arange(32 * 32 * 3).astype(np.uint8).reshape(1, 32, 32, 3)
    features = load("random-conv").frames(ramp)[0]
    assert features[[0, 8, 16, 48]] == pytest.approx([0.20097, 0.37587, 0.26942, 0.40085], abs=1e-4)


@pytest.mark.parametrize(("height", "width"), [(16, 20), (64, 96), (300, 400)])
def test_random_conv_sees_texture_contrast_and_colour_at_any_size(height, width):
    extractor = load("random-conv")
    frame = clip(1, height, width)
    clean = extractor.frames(frame)[0]

    def moved(other: np.ndarray) -> np.ndarray:
        return np.abs(extractor.frames(other.astype(np.uint8))[0] - clean)

    blurred = frame.reshape(1, height // 2, 2, width // 2, 2, 3).mean((2, 4)).repeat(2, 1).repeat(2, 2)
    next_to_nothing = moved(frame ^ 1).mean()  # half a grey level up or down
    for changed in (blurred, 127.5 + (frame - 127.5) * 0.8, np.minimum(frame * np.array([1.1, 1, 0.9]), 255)):
        assert moved(changed).mean() > 5 * next_to_nothing
        assert (moved(changed) > 0).mean() > 0.9  # no dead channels


def test_kinds_are_known_to_transformers():
    from transformers import CONFIG_MAPPING

    for kind in KINDS.values():
        assert all(model_type in CONFIG_MAPPING for model_type in kind.model_types)
    assert extractors.NAMES == (*KINDS, "random-conv")

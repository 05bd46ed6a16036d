import json
import shutil
from pathlib import Path

import pytest

from model.weights import WeightsError, find_folder, one_line, read_config, sha256_of, weight_files

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TYPES = ("dinov2", "vit")


@pytest.fixture
def folder(tmp_path) -> Path:
    """A model folder as far as this module looks into it."""
    path = tmp_path / "tiny"
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "dinov2"}')
    (path / "model.safetensors").write_bytes(b"weights")
    return path


@pytest.fixture
def hub(folder, tmp_path, monkeypatch) -> Path:
    """A cache of the Hub that holds someone/tiny, without a network."""
    repository = tmp_path / "hub" / "models--someone--tiny"
    shutil.copytree(folder, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "refs" / "small").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return repository


def test_a_folder_is_taken_as_it_is(folder):
    assert find_folder(folder, None) == (folder, "tiny", None)
    assert find_folder(str(folder), None) == (folder, "tiny", None)
    with pytest.raises(WeightsError, match="has no revision 'main'"):
        find_folder(folder, "main")


@pytest.mark.parametrize("source", ["./nowhere", "/nowhere", "~/nowhere/at/all", "some/deep/folder", Path("no/where")])
def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(source):
    with pytest.raises(WeightsError, match="no such folder"):
        find_folder(source, None)


@pytest.mark.parametrize("revision", [None, "main", "small", COMMIT])
def test_a_repository_of_the_hub_is_taken_at_its_commit(hub, revision):
    assert find_folder("someone/tiny", revision) == (hub / "snapshots" / COMMIT, "someone/tiny", COMMIT)


def test_what_the_hub_does_not_have(hub):
    with pytest.raises(WeightsError, match="someone/tiny: cannot be fetched.*hf download someone/tiny"):
        find_folder("someone/tiny", "other")
    with pytest.raises(WeightsError, match="someone/else: cannot be fetched"):
        find_folder("someone/else", None)
    with pytest.raises(WeightsError, match="some one: cannot be fetched"):
        find_folder("some one", None)


def test_what_is_not_a_commit_is_no_revision(hub):
    (hub / "refs" / "odd").write_text("latest")
    (hub / "snapshots" / "latest").mkdir()
    with pytest.raises(WeightsError, match="'latest' is not a commit"):
        find_folder("someone/tiny", "odd")


def test_config(folder):
    assert read_config(folder, TYPES) == {"model_type": "dinov2"}
    with pytest.raises(WeightsError, match="type 'dinov2', asked for is clip or siglip"):
        read_config(folder, ("clip", "siglip"))
    for text in ("{}", "[]", '{"model_type": null}', '{"model_type": ["dinov2"]}'):
        (folder / "config.json").write_text(text)
        with pytest.raises(WeightsError, match="asked for is dinov2 or vit"):
            read_config(folder, TYPES)
    (folder / "config.json").write_text("{")
    with pytest.raises(WeightsError, match="is not JSON"):
        read_config(folder, TYPES)
    (folder / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"no config\.json"):
        read_config(folder, TYPES)


def test_adapters_are_refused(folder):
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "someone/else"}))
    with pytest.raises(WeightsError, match="adapter"):
        read_config(folder, TYPES)


def test_weights_in_one_file(folder):
    (folder / "pytorch_model.bin").write_bytes(b"a pickle beside it is not looked at")
    assert weight_files(folder) == [folder / "model.safetensors"]
    assert sha256_of(folder / "model.safetensors") == "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"


def test_pickles_are_refused(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"no model\.safetensors in it, only pytorch_model\.bin.*refs/pr/N"):
        weight_files(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(WeightsError, match=r"no model\.safetensors in it; pass a revision"):
        weight_files(folder)


def test_weights_in_several_files(folder):
    (folder / "model.safetensors").rename(folder / "model-1-of-2.safetensors")
    (folder / "model-2-of-2.safetensors").write_bytes(b"more")
    (folder / "pickle.bin").write_bytes(b"")
    index = folder / "model.safetensors.index.json"
    where = {"a": "model-2-of-2.safetensors", "b": "model-1-of-2.safetensors", "c": "model-2-of-2.safetensors"}
    index.write_text(json.dumps({"weight_map": where}))
    assert [path.name for path in weight_files(folder)] == ["model-1-of-2.safetensors", "model-2-of-2.safetensors"]
    for hostile in ("../tiny/model-1-of-2.safetensors", "/etc/passwd", "model-3-of-2.safetensors", "pickle.bin", 5):
        index.write_text(json.dumps({"weight_map": {**where, "d": hostile}}))
        with pytest.raises(WeightsError, match="which is not there"):
            weight_files(folder)
    for damaged in ("[]", "{}", "{", '{"weight_map": ["a"]}'):
        index.write_text(damaged)
        with pytest.raises(WeightsError, match="is not an index"):
            weight_files(folder)


def test_one_line():
    assert one_line(ValueError("first\nsecond")) == "first"
    assert one_line(ValueError("")) == "ValueError"
    assert one_line(ValueError("\x1b[31mred" + "x" * 400)) == "?[31mred" + "x" * 292

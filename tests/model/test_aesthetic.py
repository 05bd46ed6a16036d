import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from model.aesthetic import load_head
from model.weights import WeightsError

WEIGHT = np.array([[1.0, -2.0, 0.5]], np.float32)


def save(path, **tensors):
    save_file({name: np.asarray(value, np.float32) for name, value in tensors.items()}, path)
    return path


def test_scores_by_hand(tmp_path):
    head = load_head(save(tmp_path / "head.safetensors", weight=WEIGHT, bias=[5]))
    features = np.array([[3.0, 0, 4], [0, 7, 0], [0, 0, 0]])  # at length 1: (0.6, 0, 0.8), (0, 1, 0)
    assert head.scores(features) == pytest.approx([0.6 + 0.4 + 5, -2 + 5, 5])
    assert head.scores(features * 100) == pytest.approx(head.scores(features))
    with pytest.raises(WeightsError, match=r"takes 3 features, saw \[3, 2\]"):
        head.scores(features[:, :2])


def test_identity_is_of_the_file(tmp_path):
    one = load_head(save(tmp_path / "head.safetensors", weight=WEIGHT, bias=[5]))
    two = load_head(str(save(tmp_path / "other.safetensors", weight=WEIGHT + 1, bias=[5])))
    assert len(one.identity["weights"]["head.safetensors"]) == 64
    assert one.identity["weights"]["head.safetensors"] != two.identity["weights"]["other.safetensors"]
    assert one.identity["feature_dim"] == 3


@pytest.mark.parametrize(
    "tensors",
    [{"weight": WEIGHT}, {"weight": WEIGHT[0], "bias": [5]}, {"weight": WEIGHT, "bias": 5}, {"bias": [5]},
     {"weight": np.ones((2, 3)), "bias": [5]}, {"weight": WEIGHT, "bias": [5], "more": [1]}],
)  # fmt: skip
def test_another_network_is_no_head(tmp_path, tensors):
    with pytest.raises(WeightsError, match=r"weight \[1, D\] and bias \[1\], saw"):
        load_head(save(tmp_path / "head.safetensors", **tensors))


def test_pickles_and_damage_are_refused(tmp_path):
    pickle = tmp_path / "sa_0_4_vit_l_14_linear.pth"
    torch.save({"weight": torch.ones(1, 3), "bias": torch.ones(1)}, pickle)
    for path in (pickle, tmp_path / "nowhere.safetensors"):
        with pytest.raises(WeightsError, match="no such file of safetensors; convert"):
            load_head(path)
    with pytest.raises(WeightsError, match="not a file of safetensors"):
        load_head(pickle.rename(tmp_path / "renamed.safetensors"))
    with pytest.raises(WeightsError, match="not finite"):
        load_head(save(tmp_path / "nan.safetensors", weight=WEIGHT, bias=[np.nan]))


def test_the_conversion_in_the_docs(tmp_path, monkeypatch):
    from safetensors.torch import save_file

    torch.save(torch.nn.Linear(3, 1).state_dict(), tmp_path / "sa_0_4_vit_l_14_linear.pth")
    monkeypatch.chdir(tmp_path)
    head = torch.load("sa_0_4_vit_l_14_linear.pth", weights_only=True)
    save_file({name: head[name].contiguous() for name in ("weight", "bias")}, "aesthetic.safetensors")
    assert load_head("aesthetic.safetensors").weight == pytest.approx(head["weight"][0].numpy())

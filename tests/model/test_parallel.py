"""Two processes against one: the same loss curve and weights up to rounding, and files that do not tell how many."""

import ast
import subprocess
import sys

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file

from model import checkpoint, parallel
from model.parallel import ParallelError, Team
from model.training import train
from tests.model.together import EMPTY, SETTINGS, batches, model

TOLERANCE = 1e-4  # relative: sums of gradients are taken in another order


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What two processes made: a folder, and the losses that each of them saw."""
    folder = tmp_path_factory.mktemp("together")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*command, "-m", "tests.model.together", str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, ast.literal_eval((folder / "losses.txt").read_text())


@pytest.fixture(scope="module")
def alone():
    one = model()
    metrics = train(one, batches, SETTINGS, empty_text_SD=EMPTY)
    return one.state_dict(), [m["loss"] for m in metrics]


@pytest.mark.parametrize("name", ["replicate", "shard", "parts"])
def test_two_train_as_one(together, alone, name):
    folder, losses = together
    assert losses[0] == losses[1]
    assert losses[0][name] == pytest.approx(alone[1], rel=TOLERANCE)
    state = load_file(folder / f"{name}.safetensors")
    assert state.keys() == alone[0].keys()
    for key, tensor in alone[0].items():
        # AdamW's first steps divide by gradients that may be all rounding, so single weights may differ more
        assert (state[key] - tensor).norm() <= 1e-3 * tensor.norm() + 1e-4


def test_what_is_saved_is_a_plain_model(together):
    folder, _ = together
    plain = WanTransformer3DModel.from_pretrained(folder / "shard-model")
    for key, tensor in load_file(folder / "shard.safetensors").items():
        assert torch.equal(plain.state_dict()[key], tensor)


def test_a_checkpoint_of_two_is_gone_on_with_by_one(together, alone):
    folder, losses = together
    assert [one["stopped"] for one in losses] == [[1.0], [1.0]]  # both stopped when one was asked to
    assert checkpoint.latest(folder / "stopped").step == 3
    one = model()
    metrics = train(one, batches, SETTINGS, folder / "stopped", empty_text_SD=EMPTY)
    assert [m["loss"] for m in metrics] == pytest.approx(alone[1], rel=TOLERANCE)
    names = {name.partition("/")[0] for name in checkpoint.latest(folder / "shard").tensors}
    assert names == {"model", "ema", "optimizer.step", "optimizer.exp_avg", "optimizer.exp_avg_sq"}


def test_all_know_the_clip_that_one_found_broken(together):
    assert [one["poisoned"] for one in together[1]] == [[1.0], [1.0]]


def test_another_layout_is_refused():
    with pytest.raises(ParallelError, match="replicate or shard, not 'both'"):
        parallel.spread(model(), Team(0, 2), "both")

import numpy as np
import torch

from model.reversal import reverse_frames


def test_reversal_is_its_own_inverse_and_leaves_the_input_alone():
    frames = np.random.default_rng(0).integers(0, 256, (7, 4, 5, 3), dtype=np.uint8)
    before = frames.copy()
    backwards = reverse_frames(frames)
    assert np.array_equal(backwards[0], frames[6])
    assert not np.array_equal(backwards, frames)
    assert np.array_equal(reverse_frames(backwards), frames)
    backwards[:] = 0
    assert np.array_equal(frames, before)


def test_the_copy_is_contiguous_also_for_one_frame_and_for_strided_input():
    frames = np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3), dtype=np.uint8)
    for clip in (frames, frames[:1], frames[::2, :, ::-1], frames.transpose(0, 2, 1, 3)):
        backwards = reverse_frames(clip)
        assert backwards.flags.c_contiguous
        assert not np.shares_memory(backwards, frames)
        torch.from_numpy(backwards)

"""Block-causal masks against their definition, frame by frame."""

import pytest
import torch

from model.masks import block_causal, expand_to_tokens, token_mask


@pytest.mark.parametrize("window", [None, 0, 1, 2])
def test_mask_is_the_definition(window):
    mask = block_causal(8, 3, window)  # the last chunk is shorter
    for query in range(8):
        for key in range(8):
            past = query // 3 - key // 3
            assert bool(mask[query, key]) == (0 <= past and (window is None or past <= window))


def test_tokens_see_what_their_frames_see():
    frames = block_causal(4, 2, 0)
    tokens = expand_to_tokens(frames, 5)
    assert tokens.shape == (20, 20)
    assert all(bool(tokens[q, k]) == bool(frames[q // 5, k // 5]) for q in range(20) for k in range(20))
    assert torch.equal(token_mask(4, 2, 0, 5, torch.device("cpu")), tokens)


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        block_causal(0, 3)
    with pytest.raises(ValueError, match="window_chunks"):
        block_causal(6, 3, -1)

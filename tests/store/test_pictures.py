"""Pictures for people: what is shown where."""

import io

import numpy as np
import pytest
from PIL import Image

from store.pictures import contact_sheet, grid_video
from store.video import VideoError, decode_video


def test_contact_sheet_shows_first_to_last_frame_of_every_clip():
    ramp = np.arange(9, dtype=np.uint8)[:, None, None, None] * 20 + np.zeros((9, 16, 16, 3), np.uint8)
    labels = ["up", "a label that is much too long " * 9]
    data = contact_sheet([ramp, ramp[:3]], columns=5, labels=labels, scale=2)
    sheet = np.asarray(Image.open(io.BytesIO(data)))
    assert sheet.shape == (2 * (18 + 34), 5 * 34, 3)
    assert sheet[18 + 17, 17::34, 0].tolist() == [0, 40, 80, 120, 160]
    assert sheet[52 + 18 + 17, 17::34, 0].tolist() == [0, 20, 40, 0, 0]
    assert data == contact_sheet([ramp, ramp[:3]], columns=5, labels=labels, scale=2)
    with pytest.raises(VideoError, match="2 clips needs as many labels, saw 1"):
        contact_sheet([ramp, ramp], labels=["one"])


def test_grid_video_places_and_enlarges_clips():
    red, blue = (np.broadcast_to(np.uint8(c), (4, 16, 16, 3)) for c in ((255, 0, 0), (0, 0, 255)))
    rows = {"seed": [red, blue], "rollout of round 1": [blue, red[:2]]}
    frames = decode_video(grid_video(rows, fps=8, scale=3, titles=["a red circle", "猫"]))
    assert len(frames) == 4
    assert frames.shape[1] >= 20 + 2 * 48
    right, down = frames.shape[2] - 26, frames.shape[1] - 26  # centre of the last cell
    for frame in (frames[0], frames[-1]):  # the short clip holds its last frame
        assert frame[down, right, 0] > 240
        assert frame[down - 50, right, 2] > 240
        assert frame[down, right - 50, 2] > 240
    with pytest.raises(VideoError, match="same number of clips"):
        grid_video({"a": [red], "b": []}, fps=8)

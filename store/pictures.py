"""Pictures for people to look at: contact sheets (png) and grids (mp4) of clips.

Frames are uint8 RGB arrays [T, H, W, 3] (T pixel frames, H height, W width). Small clips are enlarged without
smoothing, so that their pixels show.
"""

import io
import textwrap
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from store.video import VideoError, encode_video

if TYPE_CHECKING:
    from PIL import Image, ImageFont

TITLE_LINES = 6  # of a column's title in a grid


def contact_sheet(
    clips: Sequence[np.ndarray], *, columns: int = 8, labels: Sequence[str] | None = None, scale: int | None = None
) -> bytes:
    """PNG: one row a clip [T, H, W, 3], its label above, `columns` frames spread evenly from the first to the last.

    Frames are enlarged by `scale` without smoothing; by default small ones to about 96 pixels. Clips may differ in
    length and size. Raises VideoError for no clips or a wrong number of labels.
    """
    from PIL import Image, ImageDraw

    if not clips or columns < 1:
        raise VideoError(f"a contact sheet needs a clip and a column, saw {len(clips)} clips, {columns} columns")
    if labels is not None and len(labels) != len(clips):
        raise VideoError(f"a contact sheet of {len(clips)} clips needs as many labels, saw {len(labels)}")
    strips = []
    for clip in clips:
        shown = clip[np.linspace(0, len(clip) - 1, min(columns, len(clip))).round().astype(int)]
        zoom = scale or max(1, round(96 / clip.shape[1]))
        strips.append(np.concatenate([np.pad(_enlarge(frame, zoom), ((1, 1), (1, 1), (0, 0))) for frame in shown], 1))
    head = 18 if labels is not None else 0
    width = max(strip.shape[1] for strip in strips)
    canvas = Image.new("RGB", (width, sum(strip.shape[0] + head for strip in strips)), "black")
    draw, font = ImageDraw.Draw(canvas), _font(12)
    top = 0
    for index, strip in enumerate(strips):
        if labels is not None:
            draw.text((3, top + 2), _shorten(labels[index], font, width - 6), "white", font)
        canvas.paste(Image.fromarray(strip), (0, top + head))
        top += strip.shape[0] + head
    return _png(canvas)


def grid_video(
    rows: Mapping[str, Sequence[np.ndarray]],
    fps: float,
    *,
    scale: int = 4,
    titles: Sequence[str] | None = None,
    crf: int = 16,
) -> bytes:
    """mp4 of clips side by side: a row for each labelled source, a column for each prompt (title above, if given).

    All clips share height and width and are enlarged `scale` times without smoothing; shorter ones hold their last
    frame. Raises VideoError where rows differ in the number of clips, or clips in size.
    """
    from PIL import Image, ImageDraw

    counts = {label: len(clips) for label, clips in rows.items()}
    if not rows or len(set(counts.values())) != 1 or not min(counts.values()):
        raise VideoError(f"every row of the grid needs the same number of clips, at least one; saw {counts}")
    sizes = {clip.shape[1:3] for clips in rows.values() for clip in clips}
    columns = next(iter(counts.values()))
    if len(sizes) != 1 or (titles is not None and len(titles) != columns):
        raise VideoError(f"a grid needs clips of one size and a title a column; saw {sorted(sizes)}, titles {titles}")
    ((height, width),) = sizes
    cell_h, cell_w, gap = height * scale, width * scale, 2
    font = _font(13)
    left = 8 + max(int(font.getlength(_shorten(label, font, 240))) for label in rows)
    heads = [textwrap.wrap(title, max(8, cell_w // 8))[:TITLE_LINES] for title in titles or ()]
    head = 8 + 16 * max(map(len, heads), default=0) if titles is not None else 0
    # An even size, so that every player shows it.
    total = ((head + len(rows) * (cell_h + gap) + 1) // 2 * 2, (left + columns * (cell_w + gap) + 1) // 2 * 2)
    canvas = Image.new("RGB", (total[1], total[0]), "black")
    draw = ImageDraw.Draw(canvas)
    for index, lines in enumerate(heads):
        for number, line in enumerate(lines):
            place = (left + index * (cell_w + gap) + 2, 2 + 16 * number)
            draw.text(place, _shorten(line, font, cell_w - 4), "white", font)
    for index, label in enumerate(rows):
        draw.text((4, head + index * (cell_h + gap) + cell_h // 2 - 8), _shorten(label, font, 240), "white", font)
    length = max(len(clip) for clips in rows.values() for clip in clips)
    frames = np.repeat(np.asarray(canvas)[None], length, 0)
    for i, clips in enumerate(rows.values()):
        for j, clip in enumerate(clips):
            held = clip[np.minimum(np.arange(length), len(clip) - 1)]
            y, x = head + i * (cell_h + gap), left + j * (cell_w + gap)
            frames[:, y : y + cell_h, x : x + cell_w] = _enlarge(held, scale)
    return encode_video(frames, fps, crf)


def _enlarge(frames: np.ndarray, scale: int) -> np.ndarray:
    """[..., H, W, 3] -> [..., H*scale, W*scale, 3], nearest."""
    return frames.repeat(scale, axis=-3).repeat(scale, axis=-2)


def _font(size: int) -> "ImageFont.FreeTypeFont | ImageFont.ImageFont":
    """DejaVu Sans, which matplotlib carries and which knows most alphabets; else Pillow's own."""
    from PIL import ImageFont

    spec = find_spec("matplotlib")  # finds the folder without importing it
    path = Path(spec.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf" if spec and spec.origin else None
    return ImageFont.truetype(path, size) if path and path.is_file() else ImageFont.load_default(size)


def _shorten(text: str, font: Any, width: int) -> str:
    """One line of at most `width` pixels."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def _png(image: "Image.Image") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()

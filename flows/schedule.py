"""What is shown when: prompts with times, and the chunks that they fall on.

A prompt can change with a chunk and not within one, so a time means the chunk that begins nearest to it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

TIME = re.compile(r"([0-9]+):([0-5][0-9](?:\.[0-9]+)?)|([0-9]+(?:\.[0-9]+)?)")


class ScheduleError(ValueError):
    """Prompts that cannot be shown as asked; the message names the file and the line."""


@dataclass(frozen=True)
class Prompt:
    """What to show from `seconds` on; `line` is where its file says so."""

    text: str
    seconds: float = 0.0
    line: int = 1


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a file, `TIME PROMPT` a line, the first at time 0; blank lines and those with # first are skipped.

    TIME is seconds or m:ss, either with a fraction, and increases. Raises ScheduleError.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ScheduleError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ScheduleError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from error
    # not splitlines: no editor counts a form feed or U+2028 as the end of a line
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1)]
    found = [_prompt(path, number, line) for number, line in lines if line and not line.startswith("#")]
    if not found:
        raise ScheduleError(f"{path}: no prompt in it; expected lines as `0 a red disc moves left`")
    first = found[0]
    if first.seconds != 0:
        raise ScheduleError(f"{path}, line {first.line}: found {in_seconds(first.seconds)}; expected 0 for the first")
    for before, one in pairwise(found):
        if one.seconds <= before.seconds:
            raise ScheduleError(
                f"{path}, line {one.line}: found {in_seconds(one.seconds)}; "
                f"expected more than the {in_seconds(before.seconds)} of line {before.line}"
            )
    return found


def _prompt(path: Path, number: int, line: str) -> Prompt:
    clock, *rest = line.split(maxsplit=1)
    match = TIME.fullmatch(clock)
    if not match:
        raise ScheduleError(
            f"{path}, line {number}: found {clock[:40]!r}; expected a time, as 64.5 (seconds) or 1:04.5, then a prompt"
        )
    if not rest:
        raise ScheduleError(f"{path}, line {number}: found {clock[:40]!r} alone; expected a prompt after the time")
    minutes, of_minute, seconds = match.groups()
    return Prompt(rest[0], float(seconds) if seconds else 60 * float(minutes) + float(of_minute), number)


@dataclass(frozen=True)
class Timing:
    """When chunks play: `chunk_frames` frames each, but for the first, which lacks `missing` of them.

    A clip of F latents has T = 1 + r (F - 1) frames, r the VAE's compression in time: its first chunk lacks r - 1.
    Chunks counted from within a clip lack none.
    """

    fps: float
    chunk_frames: int
    missing: int

    def begins(self, chunk: int) -> int:
        """The frame that a chunk begins with, and so the number of frames before it."""
        return max(0, chunk * self.chunk_frames - self.missing)

    def chunks_for(self, seconds: float) -> int:
        """Chunks that play at least so long, one or more."""
        num_frames = max(1, math.ceil(round(seconds * self.fps, 6)))  # 0.7 s at 10 fps is 7 frames, whatever floats say
        return -(-(num_frames + self.missing) // self.chunk_frames)

    def whole_chunks(self, num_frames: int) -> int:
        """Chunks that `num_frames` frames are enough for."""
        return (num_frames + self.missing) // self.chunk_frames

    def nearest(self, seconds: float, num_chunks: int) -> int:
        """Which of the first `num_chunks` chunks begins nearest to a time; of two as near, the earlier."""
        frame = round(seconds * self.fps, 6)
        below = min(int((frame + self.missing) // self.chunk_frames), num_chunks - 1)
        return min(below, min(below + 1, num_chunks - 1), key=lambda chunk: abs(self.begins(chunk) - frame))


def schedule(prompts: Sequence[Prompt], timing: Timing, num_chunks: int, path: Path | None) -> dict[int, Prompt]:
    """Each prompt by the chunk, of `num_chunks`, that begins nearest to its time.

    Raises ScheduleError, naming the file they are from, for a prompt at or past the last chunk's end, and for two of
    one chunk.
    """
    found: dict[int, Prompt] = {}
    end = timing.begins(num_chunks) / timing.fps
    for one in prompts:
        if one.seconds >= end:
            raise ScheduleError(
                f"{path}, line {one.line}: found {in_seconds(one.seconds)}; expected less than {in_seconds(end)}, "
                "where the video ends (--seconds makes it longer)"
            )
        chunk = timing.nearest(one.seconds, num_chunks)
        if chunk in found:
            other, border = found[chunk], timing.begins(chunk) / timing.fps
            raise ScheduleError(
                f"{path}, lines {other.line} and {one.line}: {in_seconds(other.seconds)} and {in_seconds(one.seconds)} "
                f"both fall on {in_seconds(border)}; expected one prompt a chunk, "
                f"{in_seconds(timing.chunk_frames / timing.fps)} long"
            )
        found[chunk] = one
    return found


def in_seconds(seconds: float) -> str:
    """A time for people: `4.25 s`."""
    return f"{round(seconds, 2):g} s"

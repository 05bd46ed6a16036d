"""`bagger rollout`: one video by one model, written to its file as it is generated.

Notable:
- Frames go to the encoder chunk by chunk, so memory does not grow with what is generated.
- Whatever ends the work early (Ctrl-C, a model that breaks down, memory that runs out), the frames so far become a
  whole, playable file. Without one generated frame there is none, and what was in its place stays.
- `--extend`: the file holds the given video's own frames, then generated ones. The model continues the last frames, as
  many as make whole chunks; what is too much is left out at their start, so that nothing is missing at the seam.

Nothing heavy is imported before all that a user may have got wrong has been looked at.

Legend: T pixel frames, H W pixel size, C latent channels, F latent frames, h w latent size.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np

from flows.command import say
from flows.params import Params
from flows.progress import progress_bar
from flows.schedule import Prompt, Timing, in_seconds, read_prompts, schedule
from store.errors import printable
from store.video import VideoError, VideoWriter, decode_video

if TYPE_CHECKING:
    from flows.generator import Generator


class RequestError(ValueError):
    """A video that cannot be made as asked; the message says why."""


@dataclass(frozen=True)
class Request:
    """What `bagger rollout` was asked for, its options by name. Raises RequestError where that makes no sense."""

    model: Path
    out: Path
    seconds: float
    seed: int
    prompt: str | None
    prompts: Path | None
    start: str | None
    extend: Path | None
    store: Path

    def __post_init__(self) -> None:
        if not (math.isfinite(self.seconds) and self.seconds > 0):
            raise RequestError(f"--seconds: found {self.seconds:g}; expected more than 0")
        for one, other in (("prompt", "prompts"), ("start", "extend")):
            if getattr(self, one) is not None and getattr(self, other) is not None:
                raise RequestError(f"--{one} and --{other} exclude each other; give one of them")
        if self.prompt is None and self.prompts is None and self.start is None:
            raise RequestError(
                "nothing to show: give --prompt TEXT or --prompts FILE, or --start CLIP_ID, whose prompt is then taken"
            )
        if self.prompt is not None and not self.prompt.strip():
            raise RequestError("--prompt is empty")


@dataclass(frozen=True)
class Made:
    """A file that was written: a line that tells what it holds, and what ended the work early, if anything did."""

    line: str
    stopped: BaseException | None


# ---------------------------------------------------------------- what a video begins with


@dataclass(frozen=True)
class Opening:
    """Whole chunks that the model continues; `origin` says whose they are.

    `timing` counts chunks from the prefix's start (`num_counted` is all of them) or from its end (0). In the latter
    case `frames_THWC` are shown before everything that is counted, else the prefix itself, decoded.
    """

    origin: str
    prefix_CFhw: np.ndarray
    timing: Timing
    num_counted: int
    frames_THWC: np.ndarray | None = None

    def num_frames(self, num_chunks: int) -> int:
        """Length of the video that ends with so many counted chunks."""
        return self.timing.begins(num_chunks) + (0 if self.frames_THWC is None else len(self.frames_THWC))


def seed_clip(store: Path, clip_id: str) -> dict[str, Any]:
    """Prompt and latents of a seed clip. Raises StoreError with the nearest id if there is none."""
    from store.table import read_table

    columns = ["clip_id", "prompt", "latents", "latents_shape", "vae_digest"]
    return dict(read_table(store, "seed", columns, ids=[clip_id]).to_pylist()[0])


def from_noise(generator: Generator, params: Params) -> Opening:
    """Nothing to continue."""
    config, video = generator.pipe.vae.config, params.video
    scale = int(config.scale_factor_spatial)
    prefix = np.zeros((int(config.z_dim), 0, video.height // scale, video.width // scale), np.float32)
    return Opening("from noise", prefix, _timing(generator, params), 0)


def from_clip(generator: Generator, params: Params, clip: dict[str, Any], model: Path) -> Opening:
    """The first chunk of a seed clip. Raises RequestError if another VAE than the model's encoded it."""
    from store.latents import unpack_latents

    if clip["vae_digest"] != generator.vae_digest:
        raise RequestError(
            f"{clip['clip_id']} was encoded by another VAE than that of {model}; choose a model of this store"
        )
    latents = unpack_latents(clip["latents"], clip["latents_shape"])[:, : params.clip.chunk_latents]
    return Opening(f"after the first chunk of {clip['clip_id']}", latents, _timing(generator, params), 1)


def from_video(generator: Generator, params: Params, frames_THWC: np.ndarray, name: str) -> Opening:
    """The last chunks of a video, as many as there are and the model's context has room for.

    Raises RequestError for a video shorter than a chunk.
    """
    from model.pipeline import encode_frames

    timing, context, length = _timing(generator, params), params.context, len(frames_THWC)
    there = timing.whole_chunks(length)
    if there == 0:
        least = timing.begins(1)
        raise RequestError(
            f"--extend {name}: found {length} frames at {timing.fps:g} a second, {in_seconds(length / timing.fps)}; "
            f"expected a chunk or more to continue: {least} frames, {in_seconds(least / timing.fps)}"
        )
    if context.window_chunks is not None:
        there = min(there, max(1, context.window_chunks + context.sink_chunks))
    seen = timing.begins(there)
    say(f"{name}: {length} frames at {timing.fps:g} a second, of which the model sees the last {seen}")
    latents = encode_frames(generator.pipe.vae, frames_THWC[None, -seen:])[0]
    origin, prefix = f"after the {length} frames of {name}", latents.float().cpu().numpy()
    return Opening(origin, prefix, replace(timing, missing=0), 0, frames_THWC)


def _timing(generator: Generator, params: Params) -> Timing:
    ratio = int(generator.pipe.vae.config.scale_factor_temporal)
    return Timing(params.video.fps, ratio * params.clip.chunk_latents, ratio - 1)


# ---------------------------------------------------------------- the video


class CtrlC:
    """Ctrl-C while a video is made: the first breaks off what is being computed, but nothing that is being written.

    Those after it are ignored until the process ends, as it then does, so that the file is finished in peace. Only for
    the main thread.
    """

    def __init__(self) -> None:
        self._asked = self._held = False

    def __enter__(self) -> CtrlC:
        self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN if self._asked else self._before)

    def _handle(self, _: int, __: FrameType | None) -> None:
        first, self._asked = not self._asked, True
        if first and not self._held:
            raise KeyboardInterrupt

    def hold(self) -> None:
        """From here on nothing is broken off."""
        self._held = True

    @contextmanager
    def held(self) -> Iterator[None]:
        """A block that comes to its end first; KeyboardInterrupt follows it."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self._asked:
            raise KeyboardInterrupt


def make(request: Request, params: Params, ctrl_c: CtrlC) -> Made:
    """Generate the video that is asked for into `request.out`; ended early, it is as long as it got.

    Whatever ends it before one frame was generated is raised, and no file is written. Raises RequestError,
    ScheduleError, StoreError, VideoError or PipelineError for what cannot be done.
    """
    clip = seed_clip(request.store, request.start) if request.start is not None else None
    text = clip["prompt"] if clip is not None and request.prompt is None else request.prompt
    prompts = [Prompt(str(text))] if request.prompts is None else read_prompts(request.prompts)
    video, given = params.video, None
    if request.extend is not None:
        given = decode_video(request.extend, height=video.height, width=video.width, fps=video.fps)

    from flows.generator import Generator

    generator = Generator(request.model, params)
    if given is not None:
        opening = from_video(generator, params, given, str(request.extend))
    elif clip is not None:
        opening = from_clip(generator, params, clip, request.model)
    else:
        opening = from_noise(generator, params)
    counted = opening.num_counted
    num_chunks = max(opening.timing.chunks_for(request.seconds), counted + 1)  # there is to be something generated
    starts = schedule(prompts, opening.timing, num_chunks, request.prompts)
    if request.prompts is not None:
        announce(starts, opening.timing)
    ahead = opening.prefix_CFhw.shape[1] // params.clip.chunk_latents - counted
    texts = {chunk + ahead if chunk else 0: one.text for chunk, one in starts.items()}  # the first is the prefix's too
    pieces = generator.stream(opening.prefix_CFhw, texts, num_chunks - counted, request.seed)
    shown, added, stopped = record(request, params, opening, pieces, num_chunks - counted, ctrl_c)

    total = opening.num_frames(num_chunks)
    stopped = None if shown == total else stopped  # Ctrl-C while the last chunk was written
    length = f"stopped after {shown} of {total} frames" if stopped else f"{shown} frames"
    addition = "" if given is None else f" ({in_seconds(added / video.fps)} added)"
    what = repr(prompts[0].text) if request.prompts is None else f"{len(prompts)} prompts of {request.prompts}"
    return Made(
        f"{request.out}: {length}, {in_seconds(shown / video.fps)}, by {generator.digest} ({request.model}) "
        f"{opening.origin}{addition}, seed {request.seed}, {what}",
        stopped,
    )


def announce(starts: Mapping[int, Prompt], timing: Timing) -> None:
    """Tell when each prompt begins."""
    for chunk, one in starts.items():
        begins, asked = in_seconds(timing.begins(chunk) / timing.fps), in_seconds(one.seconds)
        say(f"{begins}{'' if begins == asked else f' (asked for {asked})'} {printable(one.text)}")


def record(
    request: Request, params: Params, opening: Opening, pieces: Iterator[np.ndarray], num_chunks: int, ctrl_c: CtrlC
) -> tuple[int, int, BaseException | None]:
    """Write the opening's frames and those of `num_chunks` chunks as they come: a file, or without a chunk none.

    `pieces` are those of Generator.stream. Returns the numbers of frames written and generated, and what ended it
    early.
    """
    from model.rollout import RolloutError

    num_before = num_added = 0
    stopped: BaseException | None = None
    with (
        VideoWriter(request.out, fps=params.video.fps, crf=params.video.crf) as writer,
        progress_bar(num_chunks, "rollout", "chunk") as bar,
    ):
        began = time.monotonic()
        try:
            if opening.prefix_CFhw.shape[1]:
                decoded = next(pieces)  # even where it is not shown: what follows is decoded in its wake
                before = decoded if opening.frames_THWC is None else opening.frames_THWC
                writer.write(before)
                num_before = len(before)
            for frames in pieces:
                with ctrl_c.held():
                    writer.write(frames)
                    num_added += len(frames)
                    bar.set_postfix_str(f"{num_added / (time.monotonic() - began):.3g} frames/s", refresh=False)
                    bar.update()
            ctrl_c.hold()  # until the file is finished, here and below
        except VideoError:
            raise
        except RolloutError as error:
            stopped = RequestError(f"{request.model}: the model broke down: {error}")
        except (KeyboardInterrupt, Exception) as error:
            stopped = error
        ctrl_c.hold()
        if stopped is not None and not num_added:
            raise stopped
    return num_before + num_added, num_added, stopped

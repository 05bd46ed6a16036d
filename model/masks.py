"""Which frames may see which, in closed form: one rule for block-causal, teacher-forcing and resampling-forcing masks.

Frames come in chunks. A frame sees its own chunk and, of the past, the chunks inside its context (a window of recent
ones, and a sink of first ones). Training may lay two sequences side by side, [history | noisy]: a noisy chunk then
sees itself and history strictly before it, never another noisy chunk; history sees history. That one layout is teacher
forcing's mask when the history is the clean clip, and Resampling Forcing's sparse causal mask (2512.15702) when it
is the model's own resampling of it.

The rule comes in several forms: `dense` for reference, `block_mask` for flex attention on a GPU, `spans`, the few runs
of keys that each chunk sees, for everything else, and `reaches`, the same with history apart, for history routing. A
cached rollout needs none of them, because what it must not see is not in its cache; the context is counted in chunks
on both sides, so that a model is trained on what it will have.

Shapes: F latent frames of one sequence, S tokens per latent frame, L tokens of everything side by side.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

Run = tuple[int, int]  # first and one past the last
Spans = tuple[tuple[Run, tuple[Run, ...]], ...]  # for each chunk, its queries and the keys that they see


class Reach(NamedTuple):
    """What the queries of one chunk see: runs always attended to, and runs, one a past chunk, that routing picks from.

    Runs are ascending and disjoint, in frames or in tokens.
    """

    queries: Run
    always: tuple[Run, ...]
    history: tuple[Run, ...]

    def times(self, tokens_per_frame: int) -> "Reach":
        """The same in tokens."""

        def tokens(run: Run) -> Run:
            return run[0] * tokens_per_frame, run[1] * tokens_per_frame

        return Reach(tokens(self.queries), tuple(map(tokens, self.always)), tuple(map(tokens, self.history)))

    @property
    def keys(self) -> tuple[Run, ...]:
        """Everything that is seen, in order, with neighbouring runs joined."""
        joined: list[Run] = []
        for start, stop in sorted((*self.always, *self.history)):
            if joined and joined[-1][1] == start:
                joined[-1] = (joined[-1][0], stop)
            else:
                joined.append((start, stop))
        return tuple(joined)


@dataclass(frozen=True)
class Chunks:
    """Frames in chunks of `size`; an independent `first` chunk has 1..size frames, the last may be shorter."""

    size: int
    first: int | None = None

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"a chunk must have at least 1 frame, not {self.size}")
        if self.first is not None and not 1 <= self.first <= self.size:
            raise ValueError(f"the first chunk must have 1..{self.size} frames (or None), not {self.first}")

    def __str__(self) -> str:
        return f"{self.size}" if self.first is None else f"{self.first} and then {self.size}"

    @property
    def _missing(self) -> int:
        """Frames by which the first chunk is shorter than the others."""
        return 0 if self.first is None else self.size - self.first

    def index(self, frame: Any) -> Any:
        """The chunk of a frame; of an int, or elementwise of a tensor."""
        return (frame + self._missing) // self.size

    def run(self, index: int) -> Run:
        """The frames of a whole chunk."""
        return max(0, index * self.size - self._missing), (index + 1) * self.size - self._missing

    def runs(self, num_frames: int) -> list[Run]:
        """The chunks of `num_frames` frames."""
        return [(start, min(stop, num_frames)) for start, stop in map(self.run, range(self.count(num_frames)))]

    def count(self, num_frames: int) -> int:
        """How many chunks `num_frames` frames make, a shorter last one included."""
        return 0 if num_frames == 0 else int(self.index(num_frames - 1)) + 1


@dataclass(frozen=True)
class Context:
    """How much of its past a chunk attends to, in training and in rollouts alike.

    `window_chunks`: the most recent past chunks, None for all of them. `sink_chunks`: the first chunks of the clip,
    which never leave. `routed_chunks`: None attends to all of these; k lets each token and head pick the k chunks of
    the window that match it best (history routing, 2512.15702), its own chunk and the sink beside them.
    """

    window_chunks: int | None = None
    sink_chunks: int = 0
    routed_chunks: int | None = None

    def __post_init__(self) -> None:
        for name, value, least in (
            ("window_chunks", self.window_chunks, 0),
            ("sink_chunks", self.sink_chunks, 0),
            ("routed_chunks", self.routed_chunks, 1),
        ):
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, not {value}")

    def history(self, chunk: int) -> tuple[range, range]:
        """Past chunks in view of a chunk: those of the sink, and the others."""
        start = 0 if self.window_chunks is None else max(0, chunk - self.window_chunks)
        sink = range(min(self.sink_chunks, chunk))
        return sink, range(max(start, len(sink)), chunk)


@dataclass(frozen=True)
class ChunkMask:
    """The mask of `num_frames` frames, or with `with_noisy` of [history | noisy], that many each."""

    num_frames: int
    chunks: Chunks
    context: Context = Context()
    with_noisy: bool = False

    def __post_init__(self) -> None:
        if self.num_frames < 1:
            raise ValueError(f"a mask must have at least 1 frame, not {self.num_frames}")

    @property
    def length(self) -> int:
        """Frames side by side."""
        return self.num_frames * (2 if self.with_noisy else 1)

    def visible(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """True where a query frame may attend to a key frame; index tensors that broadcast, 0..length-1."""
        query_noisy, key_noisy = query >= self.num_frames, key >= self.num_frames
        query_chunk = self.chunks.index(query - query_noisy * self.num_frames)
        key_chunk = self.chunks.index(key - key_noisy * self.num_frames)
        own = (query_noisy == key_noisy) & (query_chunk == key_chunk)
        past = ~key_noisy & (key_chunk < query_chunk)
        if self.context.window_chunks is not None:
            near = query_chunk - key_chunk <= self.context.window_chunks
            past = past & (near | (key_chunk < self.context.sink_chunks))
        return own | past

    def dense(self, tokens_per_frame: int = 1, device: torch.device | str = "cpu") -> torch.Tensor:
        """The boolean token mask [L, L]; at S = 1 the frame mask. Memory grows with the square of L."""
        frame = torch.arange(self.length, device=device)
        mask_FF = self.visible(frame[:, None], frame[None, :])
        return mask_FF.repeat_interleave(tokens_per_frame, 0).repeat_interleave(tokens_per_frame, 1)

    def block_mask(self, tokens_per_frame: int, device: torch.device) -> BlockMask:
        """For flex attention; built once per mask, tokens and device."""
        return _block_mask(self, tokens_per_frame, device)

    def spans(self, tokens_per_frame: int) -> Spans:
        """The tokens that each chunk sees."""
        return tuple((reach.queries, reach.keys) for reach in self.reaches(tokens_per_frame))

    def reaches(self, tokens_per_frame: int = 1) -> list[Reach]:
        """What each chunk sees, history chunks first, noisy ones after them; in tokens, or by default in frames."""
        runs, F = self.chunks.runs(self.num_frames), self.num_frames
        history, noisy = [], []
        for index, (start, stop) in enumerate(runs):
            sink, window = self.context.history(index)
            always, routed = tuple(runs[j] for j in sink), tuple(runs[j] for j in window)
            history.append(Reach((start, stop), (*always, (start, stop)), routed))
            noisy.append(Reach((start + F, stop + F), (*always, (start + F, stop + F)), routed))
        return [reach.times(tokens_per_frame) for reach in (history + noisy if self.with_noisy else history)]


def teacher_forcing_mask(num_frames: int, chunks: Chunks, context: Context = Context()) -> ChunkMask:
    """The mask of [history | noisy], `num_frames` each, for clean or resampled history: see the module."""
    return ChunkMask(num_frames, chunks, context, with_noisy=True)


@lru_cache(maxsize=32)
def _block_mask(mask: ChunkMask, tokens_per_frame: int, device: torch.device) -> BlockMask:
    def allowed(batch: Any, head: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return mask.visible(query // tokens_per_frame, key // tokens_per_frame)

    length = mask.length * tokens_per_frame
    # Uncompiled, this builds the dense mask on the way.
    return create_block_mask(allowed, None, None, length, length, device=device, _compile=device.type == "cuda")

"""What a rollout remembers: per layer, the keys and values of the clean chunks inside its context.

A forward reads the past and leaves what it produced as pending; the caller then decides. A denoising forward is simply
forgotten (the next one takes its place); a forward on a finished chunk is kept with `commit()`, which also lets
go of what leaves the window. The past itself never changes during a forward, so re-evaluation and gradient
checkpointing see the same context, and it carries no gradient.

Notable:
- A layer's storage is one tensor, [sink | window | room for the forward's own]. Without gradients a forward writes
  into the room, and attention reads past and own together with nothing copied; the window moves once a chunk.
- With gradients a forward joins past and own into a new tensor, and a past that a backward may still need is never
  written to: the next commit that would move it moves on to new storage.
- Keys carry rotary phases of absolute frame positions. Attention depends on differences only, so a window needs no
  relabelling. A sink does once the window leaves it behind: with `relative_sink` it travels, always just before the
  window, at distances that the model was trained on.
- The text's keys and values are kept too: a rollout asks for the same ones in every step. Like the past, they are
  those of the weights that made them: after a change of weights, `reset()`.

The names update, get and reset follow diffusers' cache objects.

Shapes: B batch, L tokens, S tokens per latent frame, N heads, H head size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from model.masks import Context, Reach, Run


@dataclass(slots=True)
class KVLayer:
    """One layer's `k` and `v`, each [B, past + own, N, H], for the forward at hand."""

    k: torch.Tensor
    v: torch.Tensor
    past: int  # tokens
    own: tuple[torch.Tensor, torch.Tensor] | None = None  # pending of a forward with gradients, not yet in the room

    def get(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the past."""
        return self.k[:, : self.past], self.v[:, : self.past]

    def update(self, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Leave a forward's own keys and values as pending; returns those that it attends to: past and own."""
        if torch.is_grad_enabled():
            self.own = (k.detach(), v.detach())
            past_k, past_v = self.get()
            return torch.cat([past_k, k], dim=1), torch.cat([past_v, v], dim=1)
        self.k[:, -k.shape[1] :] = k
        self.v[:, -v.shape[1] :] = v
        return self.k, self.v


@dataclass(slots=True)
class TextKV:
    """One layer's keys and values of the text, [B, text tokens, N, H], once a forward has made them."""

    k: torch.Tensor | None = None
    v: torch.Tensor | None = None


class KVCache:
    """The past of every layer, as much of it as `context` keeps.

    `advance` makes the sink travel: rotated keys and a number of frames to the keys so much later (see `rope.advance`);
    without it the sink stays where it stood.
    """

    def __init__(
        self,
        num_layers: int,
        context: Context = Context(),
        advance: Callable[[torch.Tensor, int], torch.Tensor] | None = None,
    ) -> None:
        self.num_layers = num_layers
        self.context = context
        self.advance = advance
        self._storage: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._lent = False  # a backward may still need what is in the storage
        self.reset()

    def reset(self) -> None:
        """Forget everything: the past, what is pending, and the text."""
        self._text: torch.Tensor | None = None
        self._texts: list[TextKV] = []
        self.forget()

    def forget(self) -> None:
        """Forget the past, not the text."""
        self.layers: list[KVLayer] = []  # of the forward since the last commit
        self.chunks: list[int] = []  # frames of each chunk held, sink chunks first
        self._tokens_per_frame = 0
        self._pending = 0  # frames of the forward since the last commit
        self._anchors: list[torch.Tensor] = []  # of a travelling sink: its keys where they were made
        self._travelled = 0  # frames
        if self._lent:
            self._storage, self._lent = [], False

    @property
    def num_tokens(self) -> int:
        """Tokens of past in the cache."""
        return sum(self.chunks) * self._tokens_per_frame

    @property
    def _num_sink(self) -> int:
        return min(self.context.sink_chunks, len(self.chunks))

    def text_layers(self, text_BSD: torch.Tensor) -> list[TextKV]:
        """The layers' keys and values of a text, kept from the last forward if that had the very same tensor."""
        if text_BSD is not self._text:
            self._text, self._texts = text_BSD, [TextKV() for _ in range(self.num_layers)]
        return self._texts

    def begin(self, num_frames: int, tokens_per_frame: int, like_BNH: torch.Tensor) -> list[KVLayer]:
        """Layers with room for a forward of `num_frames` frames; what was pending is forgotten.

        `like_BNH` (empty) gives batch, heads, head size, dtype and device. Called by `causal_forward`. Raises
        ValueError when the past is of another shape, dtype or device.
        """
        own = _kind(tokens_per_frame, like_BNH)
        if self.chunks and own != (held := _kind(self._tokens_per_frame, self._storage[0][0][:, 0])):
            raise ValueError(f"the cache holds {held}; this forward has {own}")
        self._tokens_per_frame, self._pending = tokens_per_frame, num_frames
        past = self.num_tokens
        length = past + num_frames * tokens_per_frame
        if (
            not self._storage
            or _kind(0, self._storage[0][0][:, 0]) != _kind(0, like_BNH)
            or self._storage[0][0].shape[1] < length
        ):
            self._grow(length, num_frames * tokens_per_frame, like_BNH)
        self._lent |= torch.is_grad_enabled()
        # New ones each time: a backward may yet call `update` of earlier ones, to compute a block again.
        self.layers = [KVLayer(k[:, :length], v[:, :length], past) for k, v in self._storage]
        return self.layers

    def _grow(self, length: int, num_own: int, like_BNH: torch.Tensor) -> None:
        """New storage for `length` tokens and some to come, with the past in it."""
        past, old = self.num_tokens, self._storage
        capacity = 2 * length
        if self.context.window_chunks is not None:  # never more than a full context of chunks like this one
            full = (self.context.sink_chunks + self.context.window_chunks + 1) * num_own
            capacity = max(length, min(capacity, full))
        B, N, H = like_BNH.shape
        self._storage = []
        for index in range(self.num_layers):
            k, v = like_BNH.new_empty(B, capacity, N, H), like_BNH.new_empty(B, capacity, N, H)
            if past:
                k[:, :past], v[:, :past] = old[index][0][:, :past], old[index][1][:, :past]
            self._storage.append((k, v))
        self._lent = False

    def reach(self) -> Reach:
        """What the forward at hand sees, in tokens: its own chunk and the sink always, the window chunk by chunk."""
        runs: list[Run] = []
        for num_frames in (*self.chunks, self._pending):
            start = runs[-1][1] if runs else 0
            runs.append((start, start + num_frames * self._tokens_per_frame))
        sink, own = runs[: self._num_sink], runs[-1]
        return Reach((0, own[1] - own[0]), (*sink, own), tuple(runs[self._num_sink : -1]))

    @torch.no_grad()
    def commit(self, chunks: Sequence[int] | None = None) -> None:
        """Keep what the last forward produced and let go of what leaves the context.

        `chunks`: the frames of each chunk that it produced; None: it was one. Raises RuntimeError without a forward
        since the last commit, ValueError when `chunks` do not add up to its frames.
        """
        if not self.layers:
            raise RuntimeError("nothing to commit: run causal_forward(..., cache=cache) on the finished chunk first")
        chunks = [self._pending] if chunks is None else list(chunks)
        if sum(chunks) != self._pending:
            raise ValueError(f"chunks of {chunks} frames are not the {self._pending} frames of the last forward")
        for layer in self.layers:
            if layer.own is not None:
                layer.k[:, layer.past :], layer.v[:, layer.past :] = layer.own
        self.layers = []
        self.chunks += chunks
        if self.context.window_chunks is not None:
            leaving = len(self.chunks) - self._num_sink - self.context.window_chunks
            if leaving > 0:
                self._evict(leaving)

    def _evict(self, num_chunks: int) -> None:
        """Drop the window's oldest chunks: what comes after them moves up to the sink."""
        gone = sum(self.chunks[self._num_sink : self._num_sink + num_chunks])
        end, sink = self.num_tokens, sum(self.chunks[: self._num_sink]) * self._tokens_per_frame
        if self.advance and not self._anchors:
            self._anchors = [k[:, :sink].clone() for k, _ in self._storage]
        step, moved = gone * self._tokens_per_frame, []
        for pair in self._storage:
            targets = tuple(torch.empty_like(x) if self._lent else x for x in pair)
            for target, source in zip(targets, pair, strict=True):
                if self._lent:
                    target[:, :sink] = source[:, :sink]
                for start in range(sink + step, end, step):  # in steps that do not overlap with where they go
                    stop = min(start + step, end)
                    target[:, start - step : stop - step] = source[:, start:stop]
            moved.append(targets)
        self._storage, self._lent = moved, False
        del self.chunks[self._num_sink : self._num_sink + num_chunks]
        if self.advance:
            self._travelled += gone
            for (k, _), anchor in zip(self._storage, self._anchors, strict=True):
                k[:, :sink] = self.advance(anchor, self._travelled)


def _kind(tokens_per_frame: int, like_BNH: torch.Tensor) -> str:
    B, N, H = like_BNH.shape
    return f"{tokens_per_frame} tokens per frame, batch {B}, {N} heads of {H}, {like_BNH.dtype} on {like_BNH.device}"

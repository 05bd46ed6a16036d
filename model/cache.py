"""What a rollout remembers: per layer, the keys and values of the clean chunks inside the window.

A forward only reads the cache and leaves what it produced in `pending`; the caller then decides. A denoising forward is
simply forgotten (the next one overwrites `pending`); a forward on a finished chunk at sigma 0 is kept with
`commit()`, which appends, evicts and detaches. Nothing is ever written inside a transformer block, so gradient
checkpointing and re-evaluation see the same context. Keys carry rotary phases of absolute frame positions: attention
depends on differences only, so evicting old chunks needs no re-labelling.

The names update/reset/get follow the ones under discussion for diffusers, so that a later switch is cheap.

Shapes: B batch, L tokens, N heads, H head size.
"""

from dataclasses import dataclass, field

import torch


@dataclass(slots=True)
class KVLayer:
    """One layer's past (`k`, `v`: [B, L_past, N, H] or None) and the last forward's own (`new_k`, `new_v`)."""

    k: torch.Tensor | None = None
    v: torch.Tensor | None = None
    new_k: torch.Tensor | None = None
    new_v: torch.Tensor | None = None

    def get(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The past keys and values, or None when there are none."""
        return None if self.k is None or self.v is None else (self.k, self.v)

    def update(self, max_tokens: int | None) -> None:
        """Append the pending keys and values to the past and keep the last `max_tokens` tokens (None: all)."""
        assert self.new_k is not None, "update before a forward"
        assert self.new_v is not None
        new_k, new_v = self.new_k.detach(), self.new_v.detach()
        k = new_k if self.k is None else torch.cat([self.k, new_k], dim=1)
        v = new_v if self.v is None else torch.cat([self.v, new_v], dim=1)
        if max_tokens is not None:
            # A copy, because a slice would keep the evicted tokens' memory alive.
            k, v = (x[:, max(x.shape[1] - max_tokens, 0) :].clone() for x in (k, v))
        self.k, self.v = (k, v) if k.shape[1] else (None, None)
        self.new_k = self.new_v = None

    def reset(self) -> None:
        """Forget everything."""
        self.k = self.v = self.new_k = self.new_v = None


@dataclass
class KVCache:
    """The past of every layer; at most `window_chunks` committed chunks are kept (None: all of them)."""

    num_layers: int
    window_chunks: int | None = None
    layers: list[KVLayer] = field(init=False)

    def __post_init__(self) -> None:
        if self.window_chunks is not None and self.window_chunks < 0:
            raise ValueError(f"window_chunks must be at least 0 (or None for the whole past), not {self.window_chunks}")
        self.layers = [KVLayer() for _ in range(self.num_layers)]

    def commit(self) -> None:
        """Keep what the last forward produced as ONE more chunk and evict what leaves the window.

        Chunks of one cache have one size. Raises RuntimeError without a forward since the last commit.
        """
        new_k = self.layers[0].new_k
        if new_k is None:
            raise RuntimeError("nothing to commit: run causal_forward(..., cache=cache) on the finished chunk first")
        max_tokens = None if self.window_chunks is None else self.window_chunks * new_k.shape[1]
        for layer in self.layers:
            layer.update(max_tokens)

    def reset(self) -> None:
        """Forget everything."""
        for layer in self.layers:
            layer.reset()

    @property
    def num_tokens(self) -> int:
        """Tokens of past in the cache."""
        past = self.layers[0].get()
        return 0 if past is None else past[0].shape[1]

"""Ways to attend under a mask: a dense mask, flex attention, or one unmasked call per chunk (what CPUs use).

    python -m benchmarks.attention --size mid
    python -m benchmarks.attention --size tiny
    python -m benchmarks.attention --size wan1.3b --device cuda --dtype bfloat16

Queries, keys and values are random; 7 chunks, block-causal and as teacher forcing lays them out. Forward alone, and
forward with backward; flex attention has no backward on CPU. `difference` is from the dense mask, relative to the
largest value. `times ours` compares least with least; ours is flex on a GPU and chunk by chunk elsewhere.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as functional

from benchmarks import measure
from model.attention import mask_for, masked_attention
from model.masks import ChunkMask, Chunks, teacher_forcing_mask

CHUNK_LATENTS = {"tiny": 2, "mid": 1, "wan1.3b": 3}
NUM_CHUNKS = 7

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def variants(mask: ChunkMask, S: int, device: torch.device) -> dict[str, Attend]:
    """Name -> attention of q, k, v, all [B, L, N, H]; ours first."""
    dense = mask.dense(S, device)

    def by_dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=dense).transpose(1, 2)

    forms = {"chunk by chunk": mask.spans(S), "flex, compiled": mask.block_mask(S, device)}
    ours = mask_for(mask, S, device)
    ordered = sorted(forms, key=lambda name: forms[name] != ours)
    return {name: (lambda q, k, v, m=forms[name]: masked_attention(q, k, v, m)) for name in ordered} | {
        "dense mask": by_dense
    }


def compare(mask: ChunkMask, args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each way of one mask, ours first."""
    size, device, dtype = measure.setting(args)
    S, generator = size.tokens_per_frame, torch.Generator().manual_seed(0)
    shape = args.batch, mask.length * S, size.config["num_attention_heads"], size.config["attention_head_dim"]
    plain = [torch.randn(shape, generator=generator).to(device, dtype) for _ in range(3)]
    learnt = [x.clone().requires_grad_() for x in plain]
    ways = variants(mask, S, device)
    outputs = {name: attend(*plain) for name, attend in ways.items()}
    forward = {name: (lambda attend=attend: attend(*plain)) for name, attend in ways.items()}
    backward = {
        name: (lambda attend=attend: attend(*learnt).sum().backward())
        for name, attend in ways.items()
        if device.type == "cuda" or not name.startswith("flex")
    }
    for run in backward.values():
        run()  # warm, as the forwards are
    rows = [
        {"": name, "difference": measure.difference(outputs["dense mask"], output)} for name, output in outputs.items()
    ]
    for what, runs in (("forward", forward), ("with backward", backward)):
        least = {name: min(times) for name, times in measure.in_turns(runs, args.repeats, device).items()}
        for row in rows:
            if row[""] in least:
                row[f"{what} ms"] = 1e3 * least[row[""]]
                row[f"{what}, times ours"] = least[row[""]] / least[rows[0][""]]
    return rows


def main() -> None:
    parser = measure.parser(__doc__, "mid")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    size, device, _ = measure.setting(args)
    chunks = Chunks(CHUNK_LATENTS[args.size])
    frames = NUM_CHUNKS * chunks.size
    masks = {"block-causal": ChunkMask(frames, chunks), "teacher forcing": teacher_forcing_mask(frames, chunks)}
    rows = [row | {"": f"{kind}, {row['']}"} for kind, mask in masks.items() for row in compare(mask, args)]
    title = f"Masked attention, {args.size}, {args.dtype}: {frames} latents of {size.tokens_per_frame} tokens"
    measure.report(title, rows, args, device)


if __name__ == "__main__":
    main()

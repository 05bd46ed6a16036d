"""A history that looks drifted, without a rollout: latents with noise, blur, a gain or a cast.

**Our adaptation** of corruption-aware training to autoregressive history. CAT-LVDM (2505.21545), which has the name,
corrupts text embeddings of a model that is not autoregressive; Helios (2603.04379) corrupts history frames by blur,
noise and exposure, as we do here, chunk by chunk and in latent space. It is no baseline of BAgger's paper.

Shapes: C channels, F latent frames, K chunks, h w latent size.
"""

import torch

KINDS = ("noise", "blur", "gain", "cast")


def corrupt(
    clean_CFhw: torch.Tensor, chunk_latents: int, strength: float, generator: torch.Generator, kind: str | None = None
) -> torch.Tensor:
    """The clip with each chunk corrupted in one way (`kind`, or one of KINDS drawn per chunk) by an amount of its own.

    The amount a is uniform in [0, strength]: x + a eps; a part a of a 3x3 mean; x (1 + a g), g uniform in [-1, 1];
    x + a c, c ~ N(0, 1) per channel. Draws on the CPU. Raises ValueError for an unknown kind.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"corruption must be one of {', '.join(KINDS)}, not {kind!r}")
    made = []
    for x in clean_CFhw.split(chunk_latents, dim=1):
        which, amount, gain = torch.rand(3, generator=generator).tolist()
        eps = torch.randn(x.shape, generator=generator).to(x)
        cast = torch.randn(x.shape[0], 1, 1, 1, generator=generator).to(x)
        amount *= strength
        match kind or KINDS[int(which * len(KINDS))]:
            case "noise":
                made.append(x + amount * eps)
            case "blur":
                frames = torch.nn.functional.pad(x.transpose(0, 1), (1, 1, 1, 1), mode="replicate")
                made.append(x.lerp(torch.nn.functional.avg_pool2d(frames, 3, stride=1).transpose(0, 1), amount))
            case "gain":
                made.append(x * (1 + amount * (2 * gain - 1)))
            case _:
                made.append(x + amount * cast)
    return torch.cat(made, dim=1)

"""Latents to frames piece by piece, as a rollout makes them, with the Wan VAE's own causal feature cache.

The decoder of a Wan VAE sees one latent frame at a time and remembers the last two frames before each convolution.
diffusers forgets that memory at both ends of `decode`, so that a clip has to be decoded whole, and joins the frames
anew after every latent, which copies quadratically much. Here the memory lives in the decoder object, outside the VAE:
pieces of any lengths give exactly the frames of the whole, nothing grows with the clip's length, and several decoders
and whole decodes can take turns over one VAE.

Legend: B batch, T pixel frames, F latent frames, C latent channels, h w latent size, H W pixel size.
"""

from collections.abc import Iterator

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, unpatchify


def latent_statistics(vae: AutoencoderKLWan, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(mean, std) [1,C,1,1,1] by which WanPipeline normalises latents, z = (raw - mean) / std."""
    mean, std = (torch.tensor(x).view(1, -1, 1, 1, 1) for x in (vae.config.latents_mean, vae.config.latents_std))
    return mean.to(like), std.to(like)


class StreamingDecoder:
    """Decodes successive pieces of one clip's latents; `reset` begins another clip."""

    def __init__(self, vae: AutoencoderKLWan):
        """Raises ValueError for a VAE set to tiles or slices, which diffusers decodes over the whole of time."""
        if vae.use_tiling or vae.use_slicing:
            raise ValueError(
                "a VAE with tiling or slicing enabled cannot be streamed; call disable_tiling() and disable_slicing()"
            )
        self._vae = vae
        self._num_features = sum(isinstance(module, WanCausalConv3d) for module in vae.decoder.modules())
        self.reset()

    def reset(self) -> None:
        """Forget the clip; the next latent is the first of another, of any batch and size."""
        # One slot a convolution, filled and read in order of use; the decoder writes the string "Rep" into some.
        self._features: list[torch.Tensor | str | None] = [None] * self._num_features
        self._shape: tuple[int, ...] | None = None

    def decode(self, latents_BCFhw: torch.Tensor) -> np.ndarray:
        """The next frames, uint8 [B,T,H,W,3], of the clip's next F >= 1 normalised latents.

        T = r F, r the VAE's compression in time; the piece that begins a clip has r - 1 fewer, its first latent being
        one frame. Raises ValueError as `pixels` does.
        """
        parts = [
            ((pixels.float() + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 4, 1)
            for pixels in self.pixels(latents_BCFhw)
        ]
        return torch.cat(parts, 1).contiguous().cpu().numpy()

    @torch.no_grad()
    def pixels(self, latents_BCFhw: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield the pixels [B,3,T,H,W] in [-1, 1] of one latent after another, exactly as `vae.decode` has them.

        They are of the VAE's dtype, on its device. Latents count as decoded once their pixels are taken. Raises
        ValueError for latents of another shape than those before, or that do not fit the VAE. After any other exception
        only `reset` makes sense.
        """
        vae, shape = self._vae, tuple(latents_BCFhw.shape)
        if len(shape) != 5 or shape[1] != vae.config.z_dim or shape[2] < 1:
            raise ValueError(f"latents must be [B, {vae.config.z_dim}, F, h, w] with F >= 1, saw {list(shape)}")
        if self._shape is not None and shape[:2] + shape[3:] != self._shape:
            raise ValueError(
                f"this clip's latents are (B, C, h, w) = {self._shape}, saw {shape[:2] + shape[3:]}; "
                "reset() begins another clip"
            )
        self._shape = shape[:2] + shape[3:]
        latents = latents_BCFhw.to(next(vae.parameters()))
        mean, std = latent_statistics(vae, latents)
        for z_BC1hw in latents.split(1, 2):
            # diffusers takes this 1x1x1 convolution over the whole clip; a matrix product of another length may round
            # differently, and frames must not depend on how their clip was cut.
            z_BC1hw = vae.post_quant_conv(z_BC1hw * std + mean)
            first = self._features[0] is None
            out = vae.decoder(z_BC1hw, feat_cache=self._features, feat_idx=[0], first_chunk=first)
            if vae.config.patch_size is not None:
                out = unpatchify(out, vae.config.patch_size)
            yield out.clamp(-1.0, 1.0)

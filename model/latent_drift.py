"""Drift where the model works: how the statistics of a rollout's latents leave those of its own real prefix.

Notable: it needs neither decoder nor frames, so it can run inside a rollout, and it sees what the decoder forgives: a
shift or a swelling of latents that still decode well is what the next chunk is conditioned on. It sees only mean and
spread of each channel over a chunk: the same values in other places, or a frozen clip, score like the clip itself.

No paper defines it; means and standard deviations of channels are what AdaIN (arXiv:1703.06868, eq. 8) takes for style.

Latents are float [C, F, h, w] of one clip (C channels, F latent frames, h w latent size) in generation order, and
normalised as everywhere in this project: z = (raw - mean) / std with the VAE's own `latents_mean` and `latents_std`. A
channel's unit is thus its spread over the VAE's training data, whatever the VAE.

The first latent of a VAE that compresses time stands for one frame, the others for several; its statistics need not be
theirs, so that real clips have a curve above 0 too. Compare with theirs.
"""

import numpy as np

SD_FLOOR = 1e-3  # float16, as which latents are kept, is no finer about 1; keeps the logarithm of a constant finite


class LatentDriftError(ValueError):
    """Latents, prefix and chunks that do not belong together."""


def chunk_curve(latents: np.ndarray, prefix_latents: int, chunk_latents: int) -> np.ndarray:
    """Distance of every chunk's statistics from the prefix's: float64 [chunks + 1] >= 0, the first (the prefix) 0.

    d_c = sqrt(mean over channels of ((mu_c - mu_0) / s)² + ln(sd_c / sd_0)²) with mu, sd of a channel over all places
    and frames of chunk c, 0 the prefix, s = 1 the VAE's own spread in normalised latents. A shift of every channel by
    a is a; a contrast about the mean that grows by a factor k is |ln k|. Raises LatentDriftError as `statistics` does.
    """
    return _length(*parts(latents, prefix_latents, chunk_latents))


def parts(latents: np.ndarray, prefix_latents: int, chunk_latents: int) -> tuple[np.ndarray, np.ndarray]:
    """(shift, spread) of `chunk_curve` by channel, signed, each float64 [chunks + 1, C]: mu_c - mu_0, ln(sd_c / sd_0).

    Spread above 0 is contrast that grows, below 0 is washing out. Raises LatentDriftError as `statistics` does.
    """
    mean, sd = statistics(latents, prefix_latents, chunk_latents)
    return mean - mean[:1], np.log(sd / sd[:1])


def vae_curve(latents: np.ndarray, prefix_latents: int, chunk_latents: int) -> np.ndarray:
    """Distance of every chunk's statistics, the prefix's too, from the VAE's own: float64 [chunks + 1] >= 0.

    `chunk_curve` with mean 0 and standard deviation 1 in place of the prefix's. It is not 0 for a real clip, one scene
    being less varied than the data; what counts is its change, and its value where there is no real prefix to compare
    with. Raises LatentDriftError as `statistics` does.
    """
    mean, sd = statistics(latents, prefix_latents, chunk_latents)
    return _length(mean, np.log(sd))


def statistics(latents: np.ndarray, prefix_latents: int, chunk_latents: int) -> tuple[np.ndarray, np.ndarray]:
    """(mean, standard deviation) of each channel in the prefix and in each chunk after it, float64 [chunks + 1, C].

    Standard deviations are at least SD_FLOOR. Raises LatentDriftError for latents that are not float [C, F, h, w], not
    finite, or not a prefix and then whole chunks (which is what a rollout makes).
    """
    z = np.asarray(latents)
    if z.ndim != 4 or z.dtype.kind != "f" or not z.size:
        raise LatentDriftError(f"latents must be float [C, F, h, w] and not empty, saw {z.dtype} {list(z.shape)}")
    F = z.shape[1]
    if not 1 <= prefix_latents <= F or chunk_latents < 1 or (F - prefix_latents) % chunk_latents:
        raise LatentDriftError(f"{F} latent frames are not {prefix_latents} and then chunks of {chunk_latents}")
    if not np.isfinite(z).all():
        frame = int(np.argwhere(~np.isfinite(z))[:, 1].min())
        raise LatentDriftError(f"latents are not finite, from latent frame {frame} on")
    edges = [0, *range(prefix_latents, F + 1, chunk_latents)]
    chunks = [z[:, a:b].astype(np.float64) for a, b in zip(edges, edges[1:], strict=False)]
    mean = np.stack([chunk.mean((1, 2, 3)) for chunk in chunks])
    sd = np.stack([chunk.std((1, 2, 3)) for chunk in chunks])
    return mean, np.maximum(sd, SD_FLOOR)


def _length(shift: np.ndarray, spread: np.ndarray) -> np.ndarray:
    return np.sqrt((shift**2 + spread**2).mean(axis=-1))

"""Networks that look at frames, by name: DINO, CLIP, SigLIP 2, VideoMAE and others through transformers.

`load("dinov2")` fetches a checkpoint from the Hugging Face Hub at one immutable commit, or takes it from a folder, and
returns an Extractor: frames in, features out, in the order of the frames. Notable: everything is read from a folder
that was looked at first, so nothing but safetensors and JSON is ever fetched or opened, no code of a repository runs,
no adapter leads to another one, and weights that a file lacks are an error (transformers draws them at random and goes
on). Images are prepared by PIL on every machine, since torchvision resizes a little differently. `identity` says which
network it was: scores of two of them are not comparable.

`random-conv` needs no download: a few fixed random convolutions. Its features tell sets of clips apart (frechet.py);
they mean nothing to a person.

Features are float32 at any size of batch up to rounding, about 1e-5 of their length; on one machine and number of
threads they are the same bits.

Legend: T frames, B frames of a batch, W windows, D feature width, P prompts, H and W pixels where beside each other.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from model.rng import numpy_generator
from model.weights import (
    FILES,
    find_folder,
    load_network,
    load_tokenizer,
    one_line,
    read_config,
    sha256_of,
    weight_files,
)

if TYPE_CHECKING:
    import torch

BATCH = 16  # frames at once; windows are taken one by one
RANDOM_CONV = "random-conv@1"  # another network below is another version
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and standard deviation of R, G, B


class ExtractorError(ValueError):
    """A name, folder or repository that gives no extractor, or frames and prompts that one cannot take."""


@dataclass(frozen=True)
class Kind:
    """What a name stands for."""

    source: str  # repository on the Hub, the default
    model_types: tuple[str, ...]  # `model_type` of config.json that fit
    feature: Callable[[Any, Mapping[str, Any]], Any]  # (model, inputs) -> features [B, D]
    options: Mapping[str, Any] = field(default_factory=dict)  # for the model's construction
    video: str = ""  # the config's entry with the number of frames, for networks that see windows
    text: bool = False


def _first_token(model: Any, inputs: Mapping[str, Any]) -> Any:
    return model(**inputs).last_hidden_state[:, 0]


def _mean_token(model: Any, inputs: Mapping[str, Any]) -> Any:
    return model(**inputs).last_hidden_state.mean(1)


def _image(model: Any, inputs: Mapping[str, Any]) -> Any:
    return _embedding(model.get_image_features(**inputs))


def _without_predictor(model: Any, inputs: Mapping[str, Any]) -> Any:
    return model(**inputs, skip_predictor=True).last_hidden_state.mean(1)


KINDS: dict[str, Kind] = {
    # VBench's own network for subject consistency
    "dino": Kind("facebook/dino-vitb16", ("vit",), _first_token, {"add_pooling_layer": False}),
    "dinov2": Kind("facebook/dinov2-base", ("dinov2", "dinov2_with_registers"), _first_token),
    "dinov3": Kind("facebook/dinov3-vitb16-pretrain-lvd1689m", ("dinov3_vit",), _first_token),
    # ViT-B/32 is VBench's for background consistency and CLIP score, ViT-L/14 for aesthetic quality
    "clip": Kind("openai/clip-vit-base-patch32", ("clip",), _image, text=True),
    "clip-l14": Kind("openai/clip-vit-large-patch14", ("clip",), _image, text=True),
    "siglip2": Kind("google/siglip2-base-patch16-224", ("siglip", "siglip2"), _image, text=True),
    "videomae": Kind("MCG-NJU/videomae-base", ("videomae",), _mean_token, video="num_frames"),
    "vjepa2": Kind("facebook/vjepa2-vitl-fpc64-256", ("vjepa2",), _without_predictor, video="frames_per_clip"),
}
NAMES = (*KINDS, "random-conv")


class Extractor:
    """Features of frames or of windows; subclasses say how.

    `identity`, JSON-able: name, model, revision (the commit; None for a folder), weights and files (sha256 by file
    name), model_type, model_class, processor_class and library. What a folder is called matters less than its files.
    """

    name: str
    identity: dict[str, Any]

    def frames(self, frames: np.ndarray, batch: int = BATCH) -> np.ndarray:
        """Features [T, D] float32 of frames uint8 [T, H, W, 3]. ExtractorError for others, or features like NaN."""
        import torch

        check_frames(frames)
        with torch.inference_mode():
            parts = [self._embed(frames[i : i + batch]).float().cpu().numpy() for i in range(0, len(frames), batch)]
        return self._finite(np.concatenate(parts))

    def windows(self, frames: np.ndarray, bounds: np.ndarray) -> np.ndarray:
        """Features [W, 2 D] of windows [start, stop) `bounds` [W, 2] of frames: mean, then mean absolute step, of the
        frames' features. The second half is what a frozen window has none of."""
        check_bounds(bounds, len(frames), 2)
        f_TD = self.frames(frames)
        return window_features(f_TD, bounds)

    def text(self, prompts: Sequence[str]) -> np.ndarray:
        """Features [P, D] float32 of prompts, in the space of frames()."""
        raise ExtractorError(f"{self.name} knows no text; those that do: {', '.join(_with_text())}")

    def _embed(self, frames: np.ndarray) -> torch.Tensor:
        raise NotImplementedError

    def _finite(self, features: np.ndarray) -> np.ndarray:
        if not np.isfinite(features).all():
            at = int(np.argwhere(~np.isfinite(features))[0, 0])
            raise ExtractorError(f"{self.name}: features of item {at} are not finite; the weights may be damaged")
        return np.ascontiguousarray(features, np.float32)


def window_features(features: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Features [T, D] of frames to those of windows `bounds` [W, 2]: mean and mean absolute step, float32 [W, 2 D]."""
    check_bounds(bounds, len(features), 2)
    rows = []
    for start, stop in bounds:
        f = np.asarray(features[start:stop], np.float64)
        rows.append(np.concatenate([f.mean(axis=0), np.abs(np.diff(f, axis=0)).mean(axis=0)]))
    return np.array(rows, np.float32)


# ---------------------------------------------------------------- networks of transformers


class Pretrained(Extractor):
    """A network of transformers, read from a folder of safetensors. Made by load()."""

    def __init__(self, name: str, folder: Path, model_id: str, revision: str | None, device: str) -> None:
        import torch
        import transformers

        self.name, self.kind, self.device = name, KINDS[name], device
        config = read_config(folder, self.kind.model_types)
        weights = weight_files(folder)
        options = {"dtype": torch.float32, "attn_implementation": "sdpa", **self.kind.options}
        self.model = load_network("AutoModel", folder, **options).to(device)
        self.config = self.model.config
        self.num_frames = int(getattr(self.config, self.kind.video)) if self.kind.video else 0
        self.processor, processor_class = self._load_processor(folder)
        self.tokenizer = load_tokenizer(folder) if self.kind.text else None
        self._tokenizing = threading.Lock()
        used = [p for p in sorted(folder.iterdir()) if p.name in FILES and not p.name.startswith("model")]
        self.identity = {
            "name": name,
            "model": model_id,
            "revision": revision,
            "model_type": config["model_type"],
            "model_class": type(self.model).__name__,
            "processor_class": processor_class,
            "weights": {path.name: sha256_of(path) for path in weights},
            "files": {path.name: sha256_of(path) for path in used},
            "library": f"transformers {transformers.__version__}",
        }

    def _embed(self, frames: np.ndarray) -> torch.Tensor:
        if self.kind.video:
            raise ExtractorError(f"{self.name} sees windows of {self.num_frames} frames, not single ones")
        return self.kind.feature(self.model, self._inputs(list(frames)))

    def windows(self, frames: np.ndarray, bounds: np.ndarray) -> np.ndarray:
        """Features [W, D] of windows `bounds` [W, 2]; of a longer one, `num_frames` frames at equal steps are seen.

        Networks of single frames give [W, 2 D], see Extractor.windows.
        """
        if not self.kind.video:
            return super().windows(frames, bounds)
        import torch

        check_frames(frames)
        check_bounds(bounds, len(frames), self.num_frames)
        rows = []
        with torch.inference_mode():
            for start, stop in bounds:
                seen = np.linspace(start, stop - 1, self.num_frames).round().astype(int)
                rows.append(self.kind.feature(self.model, self._inputs([list(frames[seen])])).float().cpu().numpy())
        return self._finite(np.concatenate(rows))

    def text(self, prompts: Sequence[str]) -> np.ndarray:
        """Features [P, D] of prompts; what a prompt has beyond `max_tokens` (CLIP 77, SigLIP 64) is not read."""
        import torch

        if self.tokenizer is None:
            return super().text(prompts)
        if isinstance(prompts, str) or not prompts or not all(isinstance(p, str) for p in prompts):
            raise ExtractorError("prompts must be a list of one or more strings")
        # SigLIP was trained on lower case, padded at the right and without a mask; tokenizers of its second version
        # come with other defaults. CLIP reads up to the end of the text, with or without.
        siglip = self.config.model_type.startswith("siglip")
        with self._tokenizing:  # a tokenizer may keep padding and truncation in itself, and refuses a second thread
            tokens = self.tokenizer(
                [prompt.lower() for prompt in prompts] if siglip else list(prompts),
                padding="max_length", padding_side="right", truncation=True, max_length=self.max_tokens,
                return_attention_mask=not siglip, return_tensors="pt",
            ).to(self.device)  # fmt: skip
        if (largest := int(tokens["input_ids"].max())) >= self.config.text_config.vocab_size:
            raise ExtractorError(f"{self.name}: token {largest} is not the network's; the tokenizer is of another one")
        with torch.inference_mode():
            features = _embedding(self.model.get_text_features(**tokens))
        return self._finite(features.float().cpu().numpy())

    @property
    def max_tokens(self) -> int:
        """Tokens of a prompt that are read."""
        return int(self.config.text_config.max_position_embeddings)

    def _inputs(self, images: list[Any]) -> dict[str, Any]:
        return {key: value.to(self.device) for key, value in self.processor(images).items()}

    def _load_processor(self, folder: Path) -> tuple[Callable[[list[Any]], Mapping[str, Any]], str]:
        """What turns images into inputs, and its name. DINOv3's and V-JEPA 2's own want torchvision; ours do not."""
        if self.config.model_type == "dinov3_vit":
            size = int(self.config.image_size)
            return lambda images: {"pixel_values": _prepare(np.stack(images), size, size)}, f"square-{size}@1"
        if self.config.model_type == "vjepa2":
            size = int(self.config.crop_size)
            resize = int(size * 256 / 224)  # shortest edge, then the middle is cut out
            return (
                lambda images: {"pixel_values_videos": _prepare(np.stack(images[0]), resize, size)[None]},
                f"crop-{resize}-{size}@1",
            )
        from transformers import AutoImageProcessor

        try:
            processor = AutoImageProcessor.from_pretrained(
                folder, backend="pil", local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
            raise ExtractorError(
                f"{folder}: no image processor in it ({one_line(error)}); save one beside the model with "
                "AutoImageProcessor.from_pretrained(...).save_pretrained(folder)"
            ) from error
        # The order of axes is given, not guessed: a frame may be three pixels wide.
        prepare = lambda images: processor(images, return_tensors="pt", input_data_format="channels_last")  # noqa: E731
        return prepare, type(processor).__name__


def load(name: str, source: str | Path | None = None, revision: str | None = None, device: str = "cpu") -> Extractor:
    """An extractor by name (NAMES): from the Hub repository of that name, another one, or a folder.

    `source` is a repository ("facebook/dinov2-large") or a folder with config.json, preprocessor_config.json and
    safetensors, as save_pretrained writes it. `revision` is a branch, tag or commit of a repository; what it stands for
    now is recorded as a commit in `identity`, and passing that commit later gives the same network. A repository that
    was fetched before is found without a network. Raises ExtractorError or WeightsError, with what to do, for
    everything else.
    """
    if name not in NAMES:
        raise ExtractorError(f"no extractor {name!r}; there are {', '.join(NAMES)}")
    check_device(device)
    if name == "random-conv":
        if source is not None or revision is not None:
            raise ExtractorError("random-conv is made here, it takes neither source nor revision")
        return RandomConv(device)
    folder, model_id, commit = find_folder(KINDS[name].source if source is None else source, revision)
    return Pretrained(name, folder, model_id, commit, device)


def _prepare(frames: np.ndarray, resize: int, size: int) -> torch.Tensor:
    """Frames uint8 [B, H, W, 3] as DINOv3 (resize = size: squeezed to a square) and V-JEPA 2 (shorter edge to `resize`,
    the middle cut out) want them: rescaled, resized bilinearly with antialias, normalised: [B, 3, size, size]."""
    import torch
    from torch.nn.functional import interpolate

    pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() / 255
    height, width = pixels.shape[-2:]
    shape = (size, size)
    if resize != size:
        scale = resize / min(height, width)
        shape = (max(resize, int(height * scale)), max(resize, int(width * scale)))
    pixels = interpolate(pixels, shape, mode="bilinear", antialias=True)
    top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
    mean, std = (torch.tensor(values)[:, None, None] for values in IMAGENET)
    return (pixels[..., top : top + size, left : left + size] - mean) / std


# ---------------------------------------------------------------- without weights


class RandomConv(Extractor):
    """Three strided convolutions with fixed random kernels; a frame's features are the mean and the standard deviation
    of each channel over the picture: D = 96.

    Leaky, so that no channel is dead on some set of frames, and the kernels of a layer are drawn by name, the same on
    every machine. Pictures keep their shape; the shorter edge is brought to at least 32 and at most 256 pixels, so
    compare clips of one size. Texture, contrast and colour all move it; motion does, in windows().
    """

    name = "random-conv"
    edges = (32, 256)
    channels = (8, 16, 24)
    slope = 0.2

    def __init__(self, device: str = "cpu") -> None:
        import torch

        self.device = device
        self.kernels: list[torch.Tensor] = []
        sha = hashlib.sha256()
        inputs = 3
        for layer, outputs in enumerate(self.channels):
            shape = (outputs, inputs, 3, 3)
            kernel = numpy_generator(RANDOM_CONV, layer).standard_normal(shape)
            kernel *= np.sqrt(2 / (1 + self.slope**2) / np.prod(shape[1:]))  # keeps the variance through the layers
            if layer:  # sees edges and texture above the first layer, where the mean would drown them
                kernel -= kernel.mean(axis=(1, 2, 3), keepdims=True)
            weights = np.ascontiguousarray(kernel, "<f4")
            sha.update(weights.tobytes())
            self.kernels.append(torch.from_numpy(weights.astype(np.float32)).to(device))
            inputs = outputs
        self.identity = {
            "name": self.name, "model": RANDOM_CONV, "revision": None, "seed": RANDOM_CONV,
            "weights": {"kernels": sha.hexdigest()}, "files": {}, "model_type": self.name,
            "model_class": type(self).__name__, "processor_class": "shorter-edge-{}-{}@1".format(*self.edges),
            "library": f"torch {torch.__version__}",
        }  # fmt: skip

    def _embed(self, frames: np.ndarray) -> torch.Tensor:
        import torch
        from torch.nn.functional import conv2d, interpolate, leaky_relu

        x = torch.from_numpy(np.ascontiguousarray(frames)).to(self.device).permute(0, 3, 1, 2).float() / 127.5 - 1
        height, width = x.shape[-2:]
        edge = min(height, width)
        if (wanted := min(max(edge, self.edges[0]), self.edges[1])) != edge:
            shape = (round(height * wanted / edge), round(width * wanted / edge))
            x = interpolate(x, shape, mode="bilinear", antialias=True)
        parts = []
        for kernel in self.kernels:
            x = leaky_relu(conv2d(x, kernel, stride=2), self.slope)
            parts += [x.mean((2, 3)), x.std((2, 3))]
        return torch.cat(parts, 1)


# ---------------------------------------------------------------- small things


def check_device(device: str) -> None:
    """ExtractorError unless torch can put a tensor there."""
    import torch

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # without CUDA, torch asserts
        raise ExtractorError(f"device {device!r} cannot be used: {one_line(error)}") from error


def check_frames(frames: np.ndarray) -> None:
    """ExtractorError unless frames are uint8 [T, H, W, 3] with at least one frame and pixel."""
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size:
        raise ExtractorError(f"frames must be uint8 [T, H, W, 3], saw {frames.dtype} {list(frames.shape)}")


def check_bounds(bounds: np.ndarray, num_frames: int, shortest: int) -> None:
    """ExtractorError unless bounds are windows [W, 2] of at least `shortest` frames inside num_frames."""
    b = np.asarray(bounds)
    if b.ndim != 2 or b.shape[1] != 2 or not len(b) or b.dtype.kind != "i":
        raise ExtractorError(f"windows must be integers [W, 2], saw {b.dtype} {list(b.shape)}")
    if b.min() < 0 or b.max() > num_frames or (b[:, 1] - b[:, 0]).min() < shortest:
        raise ExtractorError(
            f"windows must be of {shortest} or more of the {num_frames} frames, saw "
            f"[{b.min()}, {b.max()}) with {(b[:, 1] - b[:, 0]).min()} in the shortest"
        )


def _embedding(output: Any) -> Any:
    """The projected embedding that get_image_features and get_text_features return, in transformers 5 inside an
    output."""
    return getattr(output, "pooler_output", output)


def _with_text() -> Iterator[str]:
    return (name for name, kind in KINDS.items() if kind.text)

"""Tiny random networks in the format of the Hub's, for tests of what reads them: plumbing, never quality."""

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

SIZE = 32
WORDS = ["a", "red", "blue", "ball", "box", "moves", "left", "right"]
VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIZE,
    "patch_size": 8,
}
TEXT = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": len(WORDS) + 3,
    "max_position_embeddings": 12,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SQUARE = {"height": SIZE, "width": SIZE}


def config(name: str):
    match name:
        case "dino":
            return transformers.ViTConfig(**VISION)
        case "dinov2":
            return transformers.Dinov2Config(**{k: v for k, v in VISION.items() if k != "intermediate_size"})
        case "dinov3":
            return transformers.DINOv3ViTConfig(**VISION, num_register_tokens=2)
        case "clip" | "clip-l14":
            return transformers.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=10)
        case "siglip2":
            return transformers.SiglipConfig(text_config={**TEXT, "projection_size": 16}, vision_config=VISION)
        case "videomae":
            return transformers.VideoMAEConfig(**VISION, num_frames=4)
        case "vjepa2":
            return transformers.VJEPA2Config(
                hidden_size=16, crop_size=SIZE, patch_size=8, frames_per_clip=4, num_hidden_layers=2,
                num_attention_heads=2, pred_hidden_size=16, pred_num_attention_heads=2, pred_num_hidden_layers=1,
            )  # fmt: skip
    raise KeyError(name)


def processor(name: str):
    mean, std = [0.5, 0.5, 0.5], [0.25, 0.25, 0.25]
    match name:
        case "dino":
            return transformers.ViTImageProcessor(size=SQUARE, image_mean=mean, image_std=std)
        case "dinov2":
            return transformers.BitImageProcessor(size={"shortest_edge": SIZE + 4}, crop_size=SQUARE)
        case "clip" | "clip-l14":
            return transformers.CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size=SQUARE)
        case "siglip2":
            return transformers.SiglipImageProcessor(size=SQUARE)
        case "videomae":
            return transformers.VideoMAEImageProcessor(size={"shortest_edge": SIZE}, crop_size=SQUARE)
    return None  # DINOv3's and V-JEPA 2's want torchvision


def tokenizer():
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def save(name: str, folder: Path, dtype: torch.dtype = torch.float32, **options) -> Path:
    """A network of the kind `name` with weights of a fixed seed, in `folder`, as save_pretrained writes it."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = transformers.AutoModel.from_config(config(name), **options)
        with torch.no_grad():  # fresh transformers hardly look at their input; make them
            for parameter in model.parameters():
                if parameter.ndim >= 2:
                    parameter.mul_(8)
    model.to(dtype).save_pretrained(folder)
    if images := processor(name):
        images.save_pretrained(folder)
    if name in ("clip", "clip-l14", "siglip2"):
        tokenizer().save_pretrained(folder)
    return folder

"""The toy base: a tiny pipeline in Wan's layout, trained from nothing on the toy world.

Three parts are trained one after the other and each is kept as soon as it is done, so an interrupted build goes on:

1. `AutoencoderKLWan`, 4x in space and 1:1 in time, on single frames with the past taps of its causal convolutions at
   zero: a clip then decodes frame by frame, as well as single frames do.
2. A byte-level BPE tokenizer and a small UMT5 encoder, taught to carry at every word of a subject what that subject is
   and does, so that the words of two subjects do not mix.
3. `WanTransformer3DModel`, bidirectional, flow matching: first text to video with one noise level a clip, then half of
   the clips with clean first frames, as image-to-video models are trained. It stands in for the pretrained Wan2.1 that
   both papers start from.

Run it with `python -m model.base --out DIR` (`make base`); about an hour on two cores.
"""

from __future__ import annotations

import argparse
import math
import shutil
import time
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from safetensors.torch import load_file, save_file
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from model import toyworld
from model.causal import causal_forward, causalize, decausalize
from model.pipeline import decode_latents, encode_frames, encode_prompts, save_base
from model.rng import numpy_generator, torch_generator

TEXT_LENGTH = 32
PHASES: tuple[Literal["text_to_video", "image_to_video"], ...] = ("text_to_video", "image_to_video")


@dataclass(frozen=True)
class Recipe:
    """Everything the toy base depends on."""

    size: int = 32
    num_frames: int = 14
    vae_images: int = 6000
    vae_steps: int = 2500
    vae_lr: float = 3e-3
    text_steps: int = 600
    clips: int = 4096
    batch_size: int = 16
    text_to_video_steps: int = 3500
    text_to_video_horizon: int = 5000  # of its cosine: left early, since the second phase anneals again
    text_to_video_lr: float = 2e-3
    image_to_video_steps: int = 3600
    image_to_video_lr: float = 1.2e-3
    shift: float = 3.0
    width_heads: tuple[int, int] = (4, 32)
    layers: int = 4
    ffn: int = 512


# ---------------------------------------------------------------- VAE


def new_vae(mean: list[float] | None = None, std: list[float] | None = None) -> AutoencoderKLWan:
    """A tiny Wan VAE: 4x4 pixels to one latent of 8 channels, one latent per frame."""
    return AutoencoderKLWan(
        base_dim=48, z_dim=8, dim_mult=[1], num_res_blocks=1, attn_scales=[], temperal_downsample=[],
        in_channels=48, out_channels=48, patch_size=4, scale_factor_temporal=1, scale_factor_spatial=4,
        latents_mean=mean or [0.0] * 8, latents_std=std or [1.0] * 8,
    )  # fmt: skip


def train_vae(recipe: Recipe) -> AutoencoderKLWan:
    """Train the VAE on single frames and put the statistics of its latents into its config."""
    rng = numpy_generator("base", "vae", "images")
    images = np.stack([
        toyworld.render(toyworld.sample_program(rng, float(rng.uniform(0, 95))), 1, recipe.size)[0]
        for _ in tqdm(range(recipe.vae_images), desc="toy images")
    ])  # fmt: skip
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = new_vae()
    for module in vae.modules():
        if isinstance(module, torch.nn.Conv3d) and module.kernel_size[0] == 3:
            module.weight.data[:, :, :2] = 0  # single frames give these taps no gradient, so they stay zero
    optimizer = torch.optim.AdamW(vae.parameters(), lr=recipe.vae_lr, betas=(0.9, 0.99), weight_decay=0.0)
    generator = torch_generator("base", "vae", "order")
    bar = tqdm(range(recipe.vae_steps), desc="VAE")
    for step in bar:
        optimizer.param_groups[0]["lr"] = recipe.vae_lr * (1 - step / recipe.vae_steps) * min(1.0, (step + 1) / 50)
        x = pixels[torch.randint(len(pixels), (32,), generator=generator)][:, :, None]
        z = vae.encode(x).latent_dist.mode()
        noise = 0.05 * torch.randn(z.shape, generator=generator)  # a decoder that forgives small errors of latents
        y = vae.decode(z + noise).sample
        loss = ((y - x) ** 2).mean() + 0.3 * (y - x).abs().mean() + 1e-4 * (z**2).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
    with torch.no_grad():
        z = torch.cat([vae.encode(p[:, :, None]).latent_dist.mode() for p in pixels[:1024].split(64)])
    final = new_vae(z.mean((0, 2, 3, 4)).tolist(), z.std((0, 2, 3, 4)).tolist())
    final.load_state_dict(vae.state_dict())
    return final.eval().requires_grad_(False)


def psnr(vae: AutoencoderKLWan, frames_BTHWC: np.ndarray) -> float:
    """Mean PSNR in dB of encode-decode over clips, uint8 frames [B,T,H,W,3]."""
    again = decode_latents(vae, encode_frames(vae, frames_BTHWC))
    error = ((again.astype(np.float64) - frames_BTHWC) ** 2).mean((1, 2, 3, 4))
    return float((10 * np.log10(255**2 / np.maximum(error, 1e-9))).mean())


# ---------------------------------------------------------------- text


def new_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE whose merges come from the grammar: its words are single tokens, any other text still encodes."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    rng = numpy_generator("base", "text", "tokenizer")
    captions = [toyworld.caption(toyworld.sample_program(rng)) for _ in range(3000)]
    captions += [toyworld.MARKER + text for text in captions[:300]]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=640, special_tokens=["<pad>", "</s>"], initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(captions, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", tokenizer.token_to_id("</s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", model_max_length=512
    )


def train_text_encoder(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> UMT5EncoderModel:
    """A small UMT5 encoder that can tell, at every token of a subject, that subject's colour, shape and event."""
    config = UMT5Config(
        vocab_size=len(tokenizer), d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, dropout_rate=0.0,
        relative_attention_num_buckets=16, relative_attention_max_distance=32, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    labels = {name: i for i, name in enumerate(
        [*toyworld.COLORS, *toyworld.SHAPES, *toyworld.EVENTS, *toyworld.IRREVERSIBLE,
         *(f"turns {c}" for c in toyworld.COLORS), *toyworld.CAMERAS, *toyworld.GROUNDS, *toyworld.TEXTURES, "marked"]
    )}  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = UMT5EncoderModel(config)
        head = torch.nn.Linear(config.d_model, len(labels))
    rng = numpy_generator("base", "text", "captions")
    parameters = [*encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.0)
    bar = tqdm(range(recipe.text_steps), desc="text encoder")
    for step in bar:
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - step / recipe.text_steps) * min(1.0, (step + 1) / 50)
        texts, facts = [], []
        for _ in range(32):
            description = toyworld.describe(toyworld.sample_program(rng))
            if rng.random() < 0.5:
                description = toyworld.reverse_description(description)
            texts.append(toyworld.to_text(description))
            facts.append(description)
        tokens = tokenizer(texts, padding=True, return_tensors="pt", return_offsets_mapping=True)
        target = torch.zeros(*tokens.input_ids.shape, len(labels))
        for b, (text, fact) in enumerate(zip(texts, facts, strict=True)):
            common = [fact.texture, fact.ground, *([fact.camera] if fact.camera else []), *(["marked"] * fact.marked)]
            border = (
                text.find(" over ")
                if len(fact.subjects) == 1
                else text.find(" and ", len(toyworld.MARKER) * fact.marked)
            )
            for s, (start, _) in enumerate(tokens.offset_mapping[b].tolist()):
                subject = fact.subjects[0 if start <= border or len(fact.subjects) == 1 else 1]
                target[b, s, [labels[name] for name in (*common, *subject)]] = 1.0
        hidden = encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
        losses = torch.nn.functional.binary_cross_entropy_with_logits(head(hidden), target, reduction="none").sum(-1)
        loss = losses[tokens.attention_mask.bool()].mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
    return encoder.eval().requires_grad_(False)


# ---------------------------------------------------------------- transformer


def new_transformer(recipe: Recipe) -> WanTransformer3DModel:
    """A tiny Wan transformer: 16 tokens per latent frame in the toy world."""
    heads, head_size = recipe.width_heads
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return WanTransformer3DModel(
            patch_size=(1, 2, 2), num_attention_heads=heads, attention_head_dim=head_size, in_channels=8,
            out_channels=8, text_dim=64, freq_dim=64, ffn_dim=recipe.ffn, num_layers=recipe.layers,
            cross_attn_norm=True, qk_norm="rms_norm_across_heads", rope_max_seq_len=1024,
        )  # fmt: skip


def toy_latents(recipe: Recipe, vae: AutoencoderKLWan, work: Path) -> tuple[torch.Tensor, list[str]]:
    """Latents float16 [N,C,F,h,w] and captions of clips drawn for pretraining, as many forwards as backwards."""
    rng = numpy_generator("base", "clips")
    programs = []
    for i in range(recipe.clips):
        program = toyworld.sample_program(rng, float(rng.uniform(0, toyworld.HORIZON - recipe.num_frames)))
        programs.append(toyworld.reverse(program, recipe.num_frames) if i % 2 else program)
    kept = work / "latents.safetensors"
    if not kept.is_file():
        latents = [
            encode_frames(vae, toyworld.render(program, recipe.num_frames, recipe.size)[None]).half()
            for program in tqdm(programs, desc="toy clips")
        ]
        _save({"latents": torch.cat(latents)}, kept)
    return load_file(kept)["latents"], [toyworld.caption(program) for program in programs]


def pretrain(
    recipe: Recipe,
    transformer: WanTransformer3DModel,
    phase: Literal["text_to_video", "image_to_video"],
    latents: torch.Tensor,
    text: torch.Tensor,
    work: Path,
    every: int = 500,
) -> float:
    """One phase of bidirectional flow matching, in place; the transformer ends with the averaged weights.

    One noise level a clip; in image_to_video, half of the clips begin with 1 to F-1 clean frames that carry no loss.
    `work` keeps progress, so it can be stopped at any time. Returns the smoothed last loss.
    """
    steps, peak = getattr(recipe, f"{phase}_steps"), getattr(recipe, f"{phase}_lr")
    horizon = recipe.text_to_video_horizon if phase == "text_to_video" else steps
    causalize(transformer).train().requires_grad_(True)  # without a mask it computes what the stock model does
    parameters = list(transformer.parameters())
    ema = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=peak, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    done, smooth, state = 0, None, work / f"{phase}.safetensors"
    if state.is_file():
        saved = load_file(state)
        done, smooth = int(saved["step"]), float(saved["loss"])
        for i, p in enumerate(parameters):
            p.data.copy_(saved[f"p{i}"])
            ema[i].copy_(saved[f"e{i}"])
            optimizer.state[p] = {
                "step": torch.tensor(float(done)),
                "exp_avg": saved[f"m{i}"].clone(),
                "exp_avg_sq": saved[f"v{i}"].clone(),
            }
    num_latents = latents.shape[2]
    bar = tqdm(range(done, steps), desc=phase, initial=done, total=steps)
    for step in bar:
        rate = min(1.0, (step + 1) / 200) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / horizon)))
        optimizer.param_groups[0]["lr"] = peak * rate
        generator = torch_generator("base", phase, step)
        rows = torch.randint(len(latents), (recipe.batch_size,), generator=generator)
        x = latents[rows].float()
        sigma = torch.rand(recipe.batch_size, generator=generator)
        sigma = recipe.shift * sigma / (1 + (recipe.shift - 1) * sigma)
        noise = torch.randn(x.shape, generator=generator)
        prompt = text[rows] * (torch.rand(len(rows), 1, 1, generator=generator) >= 0.1)
        clean = torch.zeros(len(rows), dtype=torch.long)
        if phase == "image_to_video":
            half = torch.rand(len(rows), generator=generator) < 0.5
            clean = half * torch.randint(1, num_latents, (len(rows),), generator=generator)
        loose = torch.arange(num_latents) >= clean[:, None]
        sigmas = sigma[:, None] * loose
        s = sigmas[:, None, :, None, None]
        velocity = causal_forward(transformer, (1 - s) * x + s * noise, sigmas, prompt, positions_F=range(num_latents))
        error = (velocity - (noise - x)).square().mean((1, 3, 4))
        loss = ((error * loose).sum(1) / loose.sum(1)).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        torch._foreach_lerp_(ema, [p.detach() for p in parameters], 1 - min(0.998, (1 + step) / (10 + step)))
        smooth = loss.item() if smooth is None else 0.99 * smooth + 0.01 * loss.item()
        bar.set_postfix(loss=f"{smooth:.4f}", refresh=False)
        if (step + 1) % every == 0 or step + 1 == steps:
            save = {"step": torch.tensor(step + 1), "loss": torch.tensor(smooth, dtype=torch.float64)}
            for i, p in enumerate(parameters):
                moments = optimizer.state[p]
                save |= {f"p{i}": p.detach(), f"e{i}": ema[i]}
                save |= {f"m{i}": moments["exp_avg"], f"v{i}": moments["exp_avg_sq"]}
            _save(save, state)
    for p, e in zip(parameters, ema, strict=True):
        p.data.copy_(e)
    decausalize(transformer).eval().requires_grad_(False)
    return float(smooth or 0.0)


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    draft = path.with_suffix(".part")
    save_file(tensors, draft)
    draft.replace(path)


def build(recipe: Recipe, folder: Path, work: Path) -> dict:
    """Train all three parts and write the pipeline folder. Returns its record, with what was measured."""
    work.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    if not (work / "vae").is_dir():
        train_vae(recipe).save_pretrained(work / "vae.part")
        (work / "vae.part").rename(work / "vae")
    vae = AutoencoderKLWan.from_pretrained(work / "vae").eval()
    if not (work / "text_encoder").is_dir():
        tokenizer = new_tokenizer()
        tokenizer.save_pretrained(work / "tokenizer")
        train_text_encoder(recipe, tokenizer).save_pretrained(work / "text_encoder.part")
        (work / "text_encoder.part").rename(work / "text_encoder")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(work / "tokenizer")
    encoder = UMT5EncoderModel.from_pretrained(work / "text_encoder").eval()
    scheduler = FlowMatchEulerDiscreteScheduler(shift=recipe.shift)
    pipe = WanPipeline(tokenizer=tokenizer, text_encoder=encoder, vae=vae, scheduler=scheduler)
    latents, captions = toy_latents(recipe, vae, work)
    text = encode_prompts(pipe, captions, TEXT_LENGTH)
    transformer = new_transformer(recipe)
    losses = {phase: pretrain(recipe, transformer, phase, latents, text, work) for phase in PHASES}
    pipe.register_modules(transformer=transformer)
    heldout = np.stack([
        toyworld.render(toyworld.sample_program(numpy_generator("base", "heldout", i)), recipe.num_frames, recipe.size)
        for i in range(48)
    ])  # fmt: skip
    measured = {
        "vae_psnr_db": round(psnr(vae, heldout), 2),
        **{f"{phase}_loss": round(loss, 4) for phase, loss in losses.items()},
    }
    record = save_base(pipe, folder, {"kind": "base", "source": "toy", "recipe": asdict(recipe), "measured": measured})
    print(f"{folder}: {measured}, {time.monotonic() - began:.0f} s")
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the toy base pipeline from nothing and write its folder.")
    parser.add_argument("--out", type=Path, required=True, help="pipeline folder to write")
    kept = Path(".work", f"base-{sha256(repr(Recipe()).encode()).hexdigest()[:16]}")
    parser.add_argument("--work", type=Path, default=kept, help="where progress is kept, by recipe")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (0: torch's choice)")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    build(Recipe(), arguments.out, arguments.work)
    shutil.rmtree(arguments.work)


if __name__ == "__main__":
    main()

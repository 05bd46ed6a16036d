"""A tiny random Llama with a tokenizer of bytes and a chat template, as save_pretrained writes it."""

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from model.weights import quiet

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
REFUSAL = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
WITHOUT_SYSTEM = REFUSAL + TEMPLATE
SILENT = TEMPLATE.replace("<|{{ m", "{% if m['role'] != 'system' %}<|{{ m").replace("<|end|>", "<|end|>{% endif %}")
SPECIAL = ["<pad>", "<s>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]


def tokenizer(template: str | None = TEMPLATE) -> transformers.PreTrainedTokenizerFast:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    characters = Tokenizer(models.BPE({token: i for i, token in enumerate([*SPECIAL, *letters])}, []))
    characters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    characters.decoder = decoders.ByteLevel()
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=characters, pad_token="<pad>", bos_token="<s>", eos_token="<|end|>",
        additional_special_tokens=SPECIAL[3:],
    )  # fmt: skip
    made.chat_template = template
    return made


def save(folder: Path, template: str | None = TEMPLATE, context: int = 4096, terse: bool = False) -> Path:
    """Weights of a fixed seed; tokens beyond the tokenizer's, as large models have them. A terse one likes to close
    strings and lists, where random letters seldom do."""
    tokens = tokenizer(template)
    config = transformers.LlamaConfig(
        vocab_size=len(tokens) + 9, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=context, tie_word_embeddings=False, mlp_bias=terse,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = transformers.LlamaForCausalLM(config)
        with torch.no_grad():  # fresh networks hardly look at their input; make this one
            for name, parameter in network.named_parameters():
                if parameter.ndim >= 2:
                    parameter.mul_(60 if "o_proj" in name else 6)
            if terse:  # the last layer's bias puts a number into every hidden state, and the closing tokens look at it
                network.model.layers[-1].mlp.down_proj.bias[0] = 100.0
                network.lm_head.weight[tokens.convert_tokens_to_ids(['"', "]"]), 0] += 0.7
    with quiet():
        network.save_pretrained(folder)
    tokens.save_pretrained(folder)
    return folder

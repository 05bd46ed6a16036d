"""Asking a language model in this process: a folder of safetensors, or a repository of the Hub, through transformers.

Answers are JSON in the form of the request's schema, token by token (llguidance): whatever the weights, only a cut at
max_tokens leaves it unfinished. Notable: each request draws from a generator of its own seed, so an answer does not
depend on the requests beside it, up to rounding (a batch pads at the left, and sums of other sizes round differently).
Nothing of a repository's sampling defaults is used.

Legend: B requests of a batch, V vocabulary, S tokens of the longest prompt.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from model.chat import Answer, ChatError, Request, printable
from model.extractors import check_device
from model.weights import digest_of, find_folder, load_network, load_tokenizer, one_line, quiet, read_config

if TYPE_CHECKING:
    import torch

# One way to write JSON, that of json.dumps: a model may otherwise put spaces until it is cut off.
_LAYOUT: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class LocalChat:
    """A causal language model with a chat template. `source` is a folder or a repository of the Hub, `revision` a
    branch, tag or commit of the latter. Raises WeightsError or ChatError, with what to do, for what cannot be used."""

    def __init__(
        self, source: str | Path, revision: str | None = None, *, device: str = "cpu", batch_size: int = 8
    ) -> None:
        import llguidance
        import torch
        import transformers
        from llguidance.hf import from_tokenizer

        if not isinstance(batch_size, int) or batch_size < 1:
            raise ChatError(f"batch_size is {batch_size!r}, allowed is a whole number from 1")
        check_device(device)
        folder, self.model_id, commit = find_folder(source, revision)
        read_config(folder, None)
        self.device, self.batch_size = device, batch_size
        self.tokenizer = load_tokenizer(folder)
        if not self.tokenizer.chat_template:
            raise ChatError(
                f"{folder}: the tokenizer has no chat template; take a model that was tuned to follow instructions, or "
                "put its chat_template.jinja into the folder"
            )
        if self.tokenizer.eos_token_id is None:
            raise ChatError(f"{folder}: the tokenizer names no eos_token, so an answer would never end")
        self._takes_system = self._check_template(folder)
        # On a GPU as the weights are kept, mostly bfloat16; a CPU is exact and not much slower in float32.
        dtype = torch.float32 if torch.device(device).type == "cpu" else "auto"
        self.network = load_network("AutoModelForCausalLM", folder, dtype=dtype).to(device)
        self.network.generation_config = transformers.GenerationConfig()
        config = self.network.config.get_text_config()
        self._embeddings = int(self.network.get_input_embeddings().weight.shape[0])
        self._context = getattr(config, "max_position_embeddings", None)
        try:
            self._grammar_tokens = from_tokenizer(
                self.tokenizer, n_vocab=max(int(config.vocab_size), len(self.tokenizer)),
                eos_token=self.tokenizer.eos_token_id,
            )  # fmt: skip
        except (ValueError, AttributeError) as error:
            raise ChatError(f"{folder}: its tokenizer cannot be held to a schema ({one_line(error)})") from error
        self.revision = commit or digest_of(folder)
        self._identity: dict[str, Any] = {
            "endpoint_kind": "transformers",
            "model_id": self.model_id,
            "revision": self.revision,
            "backend": "transformers",
            "backend_version": (
                f"transformers {transformers.__version__}, torch {torch.__version__}, "
                f"llguidance {llguidance.__version__}"
            ),
            "structured": True,
            "model_class": type(self.network).__name__,
            "dtype": str(self.network.dtype).removeprefix("torch."),
        }

    def identity(self) -> dict[str, Any]:
        """Who answers; `revision` is the commit, of a folder a digest of its files."""
        return dict(self._identity)

    def ask(self, requests: Sequence[Request], on_answer: Callable[[Answer], None] = lambda _: None) -> list[Answer]:
        """Answers in the order of the requests; see Chat.ask."""
        mine = ("transformers", self.model_id, self.revision)
        for request in requests:
            if (request.endpoint_kind, request.model, request.revision) != mine:
                raise ChatError(f"a request is for {request.endpoint_kind} {request.model!r} at {request.revision}, "
                                f"this is {mine[1]!r} at {mine[2]}")  # fmt: skip
        answers: dict[int, Answer] = {}

        def given(numbers: Sequence[int], batch: Sequence[Answer]) -> None:
            for number, answer in zip(numbers, batch, strict=True):
                answers[number] = answer
                on_answer(answer)

        prompts: dict[int, list[int]] = {}
        for number, request in enumerate(requests):
            try:
                prompts[number] = self._encode(request)
            except _RequestError as error:
                given([number], [Answer(request.digest, error=printable(error, 300))])
        # Prompts of like length side by side leave little to pad; the longest first shows early what does not fit.
        order = sorted(prompts, key=lambda number: len(prompts[number]), reverse=True)
        for start in range(0, len(order), self.batch_size):
            numbers = order[start : start + self.batch_size]
            for part, batch in self._batches(numbers, requests, prompts):
                given(part, batch)
        return [answers[number] for number in range(len(requests))]

    def _batches(
        self, numbers: Sequence[int], requests: Sequence[Request], prompts: dict[int, list[int]]
    ) -> Iterator[tuple[Sequence[int], list[Answer]]]:
        """Answers to a batch, in halves where the memory is too small for the whole."""
        import torch

        begun = time.monotonic()
        try:
            yield numbers, self._generate([requests[n] for n in numbers], [prompts[n] for n in numbers])
            return
        except torch.OutOfMemoryError as error:
            failed: Exception = error
        except (RuntimeError, IndexError, ValueError) as error:
            failed = error
        if isinstance(failed, torch.OutOfMemoryError) and len(numbers) > 1:
            middle = len(numbers) // 2
            yield from self._batches(numbers[:middle], requests, prompts)
            yield from self._batches(numbers[middle:], requests, prompts)
            return
        seconds = round(time.monotonic() - begun, 3)
        yield numbers, [Answer(requests[n].digest, error=one_line(failed), seconds=seconds) for n in numbers]

    # ------------------------------------------------------------ in

    def _check_template(self, folder: Path) -> bool:
        """Whether the chat template takes a system message. ChatError where it takes no conversation at all."""
        talk = [("system", "SYSTEM"), ("user", "USER"), ("assistant", "ASSISTANT"), ("user", "LAST")]
        try:
            if "SYSTEM" in self._text(talk):
                return True
        except _RequestError:
            pass  # some refuse the role, some pass over it in silence
        try:
            text = self._text(_merged(talk))
        except _RequestError as error:
            raise ChatError(f"{folder}: its chat template fails: {error}") from error
        if not all(content in text for _, content in talk):
            raise ChatError(f"{folder}: its chat template leaves out messages of a conversation")
        return False

    def _text(self, messages: Sequence[tuple[str, str]]) -> str:
        turns = [{"role": role, "content": content} for role, content in messages]
        try:
            return self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
        except Exception as error:  # a template is a program, and may raise whatever it likes
            raise _RequestError(one_line(error)) from error

    def _encode(self, request: Request) -> list[int]:
        """Tokens of a request. _RequestError for one that does not fit the model."""
        text = self._text(request.messages if self._takes_system else _merged(request.messages))
        tokens = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if not tokens or max(tokens) >= self._embeddings:
            raise _RequestError(f"token {max(tokens, default=None)} is not the network's; the tokenizer is of another")
        if self._context and len(tokens) + request.max_tokens > self._context:
            raise _RequestError(
                f"{len(tokens)} tokens of the prompt and {request.max_tokens} of the answer are more than the "
                f"{self._context} of the model"
            )
        return tokens

    # ------------------------------------------------------------ out

    def _generate(self, requests: Sequence[Request], prompts: Sequence[list[int]]) -> list[Answer]:
        import torch
        from transformers import GenerationConfig, LogitsProcessorList

        begun = time.monotonic()
        rows = [self._row(request) for request in requests]
        longest, eos = max(map(len, prompts)), self.tokenizer.eos_token_id
        ids_BS = torch.full((len(prompts), longest), eos)
        mask_BS = torch.zeros_like(ids_BS)
        for b, prompt in enumerate(prompts):
            ids_BS[b, longest - len(prompt) :] = torch.tensor(prompt)
            mask_BS[b, longest - len(prompt) :] = 1
        config = GenerationConfig(
            max_new_tokens=max(row.max_tokens for row in rows) + 1, do_sample=False, num_beams=1,
            eos_token_id=eos, pad_token_id=eos,
        )  # fmt: skip
        with quiet(), torch.inference_mode():
            self.network.generate(
                input_ids=ids_BS.to(self.device), attention_mask=mask_BS.to(self.device), generation_config=config,
                logits_processor=LogitsProcessorList([_processor(rows, eos)]),
            )  # fmt: skip
        seconds = round(time.monotonic() - begun, 3)
        return [
            Answer(
                request.digest, self._grammar_tokens.decode_str(row.tokens), row.error, row.finish_reason,
                self.model_id, self.revision, len(prompt), len(row.tokens), seconds,
            )
            for request, row, prompt in zip(requests, rows, prompts, strict=True)
        ]  # fmt: skip

    def _row(self, request: Request) -> _Row:
        import torch
        from llguidance import LLMatcher

        grammar = LLMatcher.grammar_from_json_schema(request.schema, overrides=_LAYOUT)
        matcher = LLMatcher(self._grammar_tokens, grammar, log_level=0)
        if matcher.is_error():
            raise ValueError(f"a schema that answers cannot be held to: {matcher.get_error()}")
        random = torch.Generator().manual_seed(request.seed)
        return _Row(matcher, random, request.temperature, request.top_p, request.max_tokens)


class _RequestError(ValueError):
    """A request that the model cannot be asked."""


@dataclass
class _Row:
    """One answer on its way."""

    matcher: Any
    random: torch.Generator
    temperature: float
    top_p: float
    max_tokens: int
    tokens: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    error: str | None = None

    def allowed(self, vocabulary: int) -> np.ndarray:
        """Tokens that may come next, bool [V]."""
        bits = np.unpackbits(np.frombuffer(self.matcher.compute_bitmask(), np.uint8), bitorder="little")[:vocabulary]
        return np.pad(bits, (0, vocabulary - len(bits))).astype(bool)

    def take(self, token: int, eos: int) -> None:
        """The next token of this answer, or its end."""
        if not self.matcher.consume_token(token):
            self.finish_reason, self.error = "error", printable(f"the grammar fails: {self.matcher.get_error()}", 300)
            return
        if token != eos:
            self.tokens.append(token)
        if self.matcher.is_stopped():
            self.finish_reason = "stop"
        elif len(self.tokens) >= self.max_tokens:
            self.finish_reason = "length"


def _processor(rows: Sequence[_Row], eos: int) -> Any:
    """What chooses each next token: generate() is left no choice but that one."""
    import torch
    from transformers import LogitsProcessor

    class Choice(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            vocabulary = scores.shape[-1]
            only_eos = np.arange(vocabulary) == eos
            allowed = [row.allowed(vocabulary) if row.finish_reason is None else only_eos for row in rows]
            allowed_BV = torch.from_numpy(np.stack(allowed)).to(scores.device)
            scores_BV = scores.float().masked_fill(~allowed_BV, float("-inf"))
            if scores_BV.isnan().any():
                raise ValueError("the network's scores are not numbers; its weights may be damaged")
            chosen = scores_BV.argmax(-1).tolist()
            for b, row in enumerate(rows):
                if row.finish_reason is not None:
                    continue
                if row.temperature > 0:
                    chosen[b] = draw(scores_BV[b], row.temperature, row.top_p, row.random)
                row.take(chosen[b], eos)
            choice_BV = torch.full_like(scores, float("-inf"))
            choice_BV[torch.arange(len(rows)), chosen] = 0
            return choice_BV

    return Choice()


def draw(scores: torch.Tensor, temperature: float, top_p: float, random: torch.Generator) -> int:
    """A token by its scores [V], of the likeliest ones that together have top_p; one number is drawn from `random`."""
    import torch

    p_V, order_V = (scores / temperature).softmax(-1).cpu().double().sort(descending=True, stable=True)
    sums_V = p_V.cumsum(-1)
    kept = int(((sums_V - p_V < top_p) & (p_V > 0)).sum())
    at = torch.rand((), generator=random, dtype=torch.float64) * sums_V[kept - 1]
    return int(order_V[min(int(torch.searchsorted(sums_V, at, right=True)), kept - 1)])


def _merged(messages: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Messages with the system's text before the first user's, for templates that have no system role."""
    if messages[0][0] != "system":
        return list(messages)
    (_, system), (role, first), *rest = messages
    return [(role, f"{system}\n\n{first}"), *rest]

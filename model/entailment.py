"""Two optional judges of a rewritten prompt, networks of transformers: is it about the same things, does it still say
what the source said?

A sentence embedding hardly sees order or direction, so a band of similarity bounds the content: too low and the scene
was lost, too high and nothing was turned. Natural language inference does see direction: of a clip that is played
backwards, the source must not entail what the new text says. Both read the folder of a model as extractors.py does:
safetensors only, at one commit, no code of a repository. Neither is a judge of the truth about a video.

Legend: P pairs of texts, B texts of a batch, S tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model.extractors import check_device
from model.verdicts import Verdict
from model.weights import digest_of, find_folder, load_network, load_tokenizer, quiet, read_config

BAND = (0.70, 0.99)  # of the cosine; of no network in particular: calibrate it on pairs that are right
LABELS = ("entailment", "neutral", "contradiction")
ENCODERS = (  # `model_type`s that see a whole text at once and need nothing but its tokens
    "albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "modernbert", "mpnet", "roberta",
    "xlm-roberta",
)  # fmt: skip
_POOLED = ("albert", "bert", "camembert", "mpnet", "roberta", "xlm-roberta")
_FIRST_POSITION = {"camembert": 2, "mpnet": 2, "roberta": 2, "xlm-roberta": 2}  # positions that no token ever has

Pair = tuple[str, str]


class EntailmentError(ValueError):
    """A network that judges nothing, or texts that it cannot take."""


class _Network:
    """An encoder, its tokenizer, and texts as its inputs. `identity` says which it was, as that of an extractor."""

    auto_class: str

    def __init__(
        self, source: str | Path, revision: str | None = None, *, device: str = "cpu", batch_size: int = 16
    ) -> None:
        import torch
        import transformers

        check_device(device)
        if batch_size < 1:
            raise EntailmentError(f"batch_size is {batch_size}, allowed is 1 or more")
        folder, model_id, commit = find_folder(source, revision)
        config = read_config(folder, ENCODERS)
        self.folder, self.device, self.batch_size = folder, device, batch_size
        self.tokenizer = load_tokenizer(folder)
        options = self._options(config["model_type"])
        self.network = load_network(self.auto_class, folder, dtype=torch.float32, **options).to(device)
        positions = self.network.config.max_position_embeddings - _FIRST_POSITION.get(config["model_type"], 0)
        self.max_tokens = int(min(positions, self.tokenizer.model_max_length))
        self.identity = {
            "name": type(self).__name__.lower(),
            "model": model_id,
            "revision": commit or digest_of(folder),
            "model_type": config["model_type"],
            "model_class": type(self.network).__name__,
            "library": f"transformers {transformers.__version__}",
        }

    def _options(self, model_type: str) -> dict[str, Any]:
        """For the network's construction."""
        return {}

    def _run(self, texts: Sequence[str], others: Sequence[str] | None = None) -> Iterator[tuple[list[int], Any, Any]]:
        """Batches: which of the texts (or pairs) they are, inputs and output. Those of more than max_tokens are in
        none: cut off, they would be judged by what they do not end with."""
        import torch

        if any(not isinstance(text, str) for text in (*texts, *(others or ()))):
            raise EntailmentError("texts must be strings")
        pairs = None if others is None else list(others)
        with quiet():  # it would warn of texts that are too long, which are seen to below
            encoded = self.tokenizer(list(texts), pairs) if texts else {"input_ids": []}
        ids = encoded["input_ids"]
        fitting = [n for n in range(len(texts)) if len(ids[n]) <= self.max_tokens]
        embeddings = self.network.get_input_embeddings().weight.shape[0]
        if (largest := max((max(ids[n]) for n in fitting if ids[n]), default=0)) >= embeddings:
            raise EntailmentError(f"{self.folder}: token {largest} is not the network's; the tokenizer is of another")
        for start in range(0, len(fitting), self.batch_size):
            numbers = fitting[start : start + self.batch_size]
            batch = [{name: values[n] for name, values in encoded.items()} for n in numbers]
            with quiet():  # and that padding apart is slower
                inputs = self.tokenizer.pad(batch, padding_side="right", return_tensors="pt").to(self.device)
            with torch.inference_mode():
                yield numbers, inputs, self.network(**inputs)

    def _finite(self, values: np.ndarray) -> np.ndarray:
        if not np.isfinite(values).all():
            raise EntailmentError(f"{self.folder}: its output is not finite; the weights may be damaged")
        return values


class Similarity(_Network):
    """Cosines of sentence embeddings, the mean of a text's tokens: an AutoModel such as
    sentence-transformers/all-MiniLM-L6-v2. Raises WeightsError or EntailmentError for what is none."""

    auto_class = "AutoModel"

    def _options(self, model_type: str) -> dict[str, Any]:
        # The pooler of BERT and its like is not used here, and often not in the file: it would count as lacking.
        return {"add_pooling_layer": False} if model_type in _POOLED else {}

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings float32 [P, D] of length 1; rows of NaN for texts that are too long to be read."""
        width = int(self.network.config.hidden_size)
        rows_PD = np.full((len(texts), width), np.nan, np.float32)
        for numbers, inputs, output in self._run(texts):
            mask_BS1 = inputs["attention_mask"][..., None].float()
            mean_BD = (output.last_hidden_state * mask_BS1).sum(1) / mask_BS1.sum(1).clamp(min=1)
            rows_PD[numbers] = self._finite((mean_BD / mean_BD.norm(dim=-1, keepdim=True)).cpu().numpy())
        return rows_PD

    def cosines(self, pairs: Sequence[Pair]) -> list[float | None]:
        """The cosine of each pair, None where a text is too long to be read. Each different text is embedded once."""
        texts = list(dict.fromkeys(text for pair in pairs for text in pair))
        rows = dict(zip(texts, self.embed(texts).astype(np.float64), strict=True))
        cosines = [float(rows[a] @ rows[b]) for a, b in pairs]
        return [None if np.isnan(cosine) else min(max(cosine, -1.0), 1.0) for cosine in cosines]


class Entailment(_Network):
    """Probabilities of natural language inference: an AutoModelForSequenceClassification whose config.id2label names
    entailment, neutral and contradiction, in any order. Raises WeightsError or EntailmentError for what is none."""

    auto_class = "AutoModelForSequenceClassification"

    def __init__(
        self, source: str | Path, revision: str | None = None, *, device: str = "cpu", batch_size: int = 16
    ) -> None:
        super().__init__(source, revision, device=device, batch_size=batch_size)
        labels = [str(label).lower() for _, label in sorted(self.network.config.id2label.items())]
        if sorted(labels) != sorted(LABELS):
            raise EntailmentError(
                f"{self.folder}: config.id2label names {', '.join(labels)[:200]}, expected {', '.join(LABELS)}"
            )
        self._order = [labels.index(label) for label in LABELS]

    def probabilities(self, pairs: Sequence[Pair]) -> list[dict[str, float] | None]:
        """Of each (premise, hypothesis) the probabilities by label; None where the two are too long to be read."""
        found: list[dict[str, float] | None] = [None] * len(pairs)
        for numbers, _, output in self._run([a for a, _ in pairs], [b for _, b in pairs]):
            rows = self._finite(output.logits.double().softmax(-1).cpu().numpy())[:, self._order]
            for number, row in zip(numbers, rows, strict=True):
                found[number] = dict(zip(LABELS, map(float, row), strict=True))
        return found


def similarity_verdict(
    cosine: float | None, reversal_class: str, band: tuple[float, float] = BAND, *, marked: bool = False
) -> Verdict:
    """`embedding_band`: the cosine of source and new text lies in the band. Without an upper end for a text that may
    stay as it was: of class invariant, or one that carries the marker. Passes, and says so, where nothing was read."""
    if cosine is None:
        return Verdict("embedding_band", True, "not judged: a text is too long for the network")
    low, high = band[0], 1.0 if reversal_class == "invariant" or marked else band[1]
    return Verdict("embedding_band", low <= cosine <= high, f"cosine {cosine:.3f}, allowed is {low:g} to {high:g}")


def entailment_verdict(
    probabilities: dict[str, float] | None, reversal_class: str, at_most: float = 0.5, *, marked: bool = False
) -> Verdict:
    """`not_entailed`: the source (premise) does not entail the new text (hypothesis) where motion was to turn, which is
    in the classes equivariant and novel. Passes, and says so, where there is nothing to judge."""
    if reversal_class not in ("equivariant", "novel") or marked:
        return Verdict("not_entailed", True, "not judged: no words were to turn")
    if probabilities is None:
        return Verdict("not_entailed", True, "not judged: the texts are too long for the network")
    entailed = probabilities["entailment"]
    return Verdict("not_entailed", entailed <= at_most, f"entailment {entailed:.3f}, allowed is up to {at_most:g}")

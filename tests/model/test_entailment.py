import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from model.entailment import LABELS, Entailment, EntailmentError, Similarity, entailment_verdict, similarity_verdict
from model.verdicts import Verdict
from model.weights import WeightsError, quiet

WORDS = ["a", "red", "ball", "box", "moves", "left", "right", "zooms", "in", "out"]
SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
        "max_position_embeddings": 24, "vocab_size": len(WORDS) + 3, "pad_token_id": 0}  # fmt: skip


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    words = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate(["[PAD]", "[CLS]", "[SEP]", *WORDS])}, unk_token="[SEP]")
    )
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", padding_side="left",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


def save(folder: Path, kind: str, config=transformers.BertConfig, labels=("Contradiction", "NEUTRAL", "entailment")):
    names = dict(enumerate(labels))
    config = config(**SIZE, id2label=names, label2id={label: i for i, label in names.items()})
    with torch.random.fork_rng():
        torch.manual_seed(5)
        network = getattr(transformers, kind).from_config(config)
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.ndim >= 2:
                    parameter.mul_(10)
    with quiet():
        network.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        "encoder": save(root / "encoder", "AutoModel"),
        "roberta": save(root / "roberta", "AutoModel", transformers.RobertaConfig),
        "nli": save(root / "nli", "AutoModelForSequenceClassification"),
    }


@pytest.fixture
def copy(folders, tmp_path):
    return lambda name: Path(shutil.copytree(folders[name], tmp_path / name))


TEXTS = ["a red ball moves left", "box", "a red ball moves right", "a a a a a a a a"]


def test_embeddings_are_means_of_tokens_and_do_not_depend_on_neighbours(folders):
    similarity = Similarity(folders["encoder"])
    rows = similarity.embed(TEXTS)
    assert rows.shape == (4, 16)
    assert rows.dtype == np.float32
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    for batch_size in (1, 3):
        backwards = Similarity(folders["encoder"], batch_size=batch_size).embed(TEXTS[::-1])
        assert np.allclose(backwards[::-1], rows, atol=1e-5)
    with torch.no_grad():
        ids = torch.tensor([[1, *(WORDS.index(w) + 3 for w in TEXTS[0].split()), 2]])
        mean = similarity.network(input_ids=ids).last_hidden_state[0].mean(0)
    assert np.allclose((mean / mean.norm()).numpy(), rows[0], atol=1e-5)


def test_cosines(folders):
    similarity = Similarity(folders["encoder"])
    same, other, back = similarity.cosines([(TEXTS[0], TEXTS[0]), (TEXTS[0], TEXTS[1]), (TEXTS[1], TEXTS[0])])
    assert same == pytest.approx(1, abs=1e-6)
    assert same <= 1
    assert other == back < 0.999
    assert similarity.cosines([]) == []
    for bad in ([(TEXTS[0], None)], [(1, 2)]):
        with pytest.raises(EntailmentError, match="strings"):
            similarity.cosines(bad)


@pytest.mark.parametrize(("name", "most"), [("encoder", 24), ("roberta", 22)])
def test_texts_that_are_too_long_are_not_judged(folders, name, most):
    similarity = Similarity(folders[name])
    assert similarity.max_tokens == most
    fits, long = "a " * (most - 2), "a " * (most - 1)
    assert similarity.cosines([(fits, "box"), (long, "box")])[0] is not None
    assert similarity.cosines([(fits, "box"), (long, "box")])[1] is None
    assert similarity.cosines([("", "box")])[0] is not None


def test_probabilities_by_the_names_of_the_labels(folders):
    entailment = Entailment(folders["nli"], batch_size=2)
    pairs = [(TEXTS[0], TEXTS[2]), (TEXTS[1], TEXTS[0]), (TEXTS[2], TEXTS[0]), ("a " * 20, "box box"), (TEXTS[0], "")]
    found = entailment.probabilities(pairs)
    assert found[3] is None
    for each in (found[0], found[1], found[2], found[4]):
        assert list(each) == list(LABELS)
        assert sum(each.values()) == pytest.approx(1)
    assert found[0] != found[2]  # premise and hypothesis are not the same
    with torch.no_grad():
        premise, hypothesis = ([WORDS.index(word) + 3 for word in text.split()] for text in (TEXTS[0], TEXTS[2]))
        ids = [1, *premise, 2, *hypothesis, 2]
        types = [0] * 7 + [1] * 6
        logits = entailment.network(
            input_ids=torch.tensor([ids]), token_type_ids=torch.tensor([types])
        ).logits  # order of the config: contradiction, neutral, entailment
    assert list(found[0].values()) == pytest.approx(logits[0].softmax(-1).flip(0).tolist(), abs=1e-5)
    assert entailment.probabilities([]) == []


def test_identity_says_which_network_it_was(folders, copy):
    one = Similarity(folders["encoder"]).identity
    assert one["name"] == "similarity"
    assert one["model_class"] == "BertModel"
    assert one["revision"].startswith("sha256:")
    other = copy("encoder")
    (other / "README.md").write_text("not part of it")
    assert Similarity(other).identity == one
    weights = load_file(other / "model.safetensors")
    weights["embeddings.LayerNorm.bias"][0] += 1
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    assert Similarity(other).identity["revision"] != one["revision"]
    json.dumps(one)


def test_networks_that_judge_nothing(folders, copy, tmp_path):
    with pytest.raises(EntailmentError, match="id2label names label_0, label_1, expected entailment"):
        Entailment(save(tmp_path / "two", "AutoModelForSequenceClassification", labels=("LABEL_0", "LABEL_1")))
    with pytest.raises(WeightsError, match=r"the file lacks \d+ of the weights, classifier.bias"):
        Entailment(folders["encoder"])
    pickled = copy("encoder")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="can run code"):
        Similarity(pickled)
    decoder = copy("nli")
    config = json.loads((decoder / "config.json").read_text())
    (decoder / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    with pytest.raises(WeightsError, match="'gpt2', asked for is albert"):
        Entailment(decoder)
    with pytest.raises(WeightsError, match="no such folder"):
        Similarity("./nowhere")
    with pytest.raises(EntailmentError, match="batch_size"):
        Similarity(folders["encoder"], batch_size=0)


def test_damaged_weights_judge_nothing(copy):
    folder = copy("nli")
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"][1] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(EntailmentError, match="not finite"):
        Entailment(folder).probabilities([("a", "box")])


@pytest.mark.parametrize(
    ("cosine", "kind", "marked", "passed"),
    [(0.9, "equivariant", False, True), (0.995, "equivariant", False, False), (0.995, "invariant", False, True),
     (0.995, "irreversible", True, True), (0.5, "invariant", False, False), (0.7, "novel", False, True),
     (None, "novel", False, True)],
)  # fmt: skip
def test_verdicts_of_the_band(cosine, kind, marked, passed):
    verdict = similarity_verdict(cosine, kind, marked=marked)
    assert (verdict.name, verdict.passed) == ("embedding_band", passed)
    assert ("not judged" in verdict.detail) == (cosine is None)


@pytest.mark.parametrize(
    ("entailed", "kind", "marked", "passed"),
    [(0.9, "equivariant", False, False), (0.9, "novel", False, False), (0.9, "invariant", False, True),
     (0.9, "irreversible", False, True), (0.9, "novel", True, True), (0.2, "novel", False, True),
     (None, "novel", False, True)],
)  # fmt: skip
def test_verdicts_of_entailment(entailed, kind, marked, passed):
    probabilities = None if entailed is None else dict(zip(LABELS, (entailed, 1 - entailed, 0.0), strict=True))
    verdict = entailment_verdict(probabilities, kind, marked=marked)
    assert isinstance(verdict, Verdict)
    assert (verdict.name, verdict.passed) == ("not_entailed", passed)

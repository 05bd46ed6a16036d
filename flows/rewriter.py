"""Who is asked for reversed prompts beside the rules, what was answered before, and a rewrite as a row of the store.

The stage `rewrite@rK` and `bagger reverse` share it. Notable: a language model is reached only when a question has no
kept answer, so what was answered once is rebuilt with its server switched off.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.chat import Answer, Chat, Request
from model.rewrite import Advice, Attempt, Rewrite
from model.verdicts import Verdict
from store.answers import AnswerLog
from store.digest import canonical_json, digest, make_id

if TYPE_CHECKING:
    from flows.params import EndpointSettings, LanguageModel, Rewriting

Check = Callable[[str, Mapping[str, Any]], list[Verdict]]  # source and proposal to verdicts
Keep = Callable[[str, dict[str, Any]], None]  # request digest and the answer to it
RETRIES = 4  # of a request that a server did not answer


class Model:
    """A language model that is looked up at once, and connected to or loaded when it is first asked."""

    def __init__(self, identity: Mapping[str, Any], connect: Callable[[], Chat]):
        self._identity, self._connect = dict(identity), connect
        self._chat: Chat | None = None

    def identity(self) -> dict[str, Any]:
        """What of it determines answers, and once it was asked all that it says of itself."""
        return dict(self._identity) | (self._chat.identity() if self._chat else {})

    def ask(self, requests: Sequence[Request], on_answer: Callable[[Answer], None]) -> list[Answer]:
        """See model.chat.Chat."""
        if self._chat is None:
            self._chat = self._connect()
        return self._chat.ask(requests, on_answer)


def model_of(llm: LanguageModel, endpoint: EndpointSettings, device: str) -> Model | None:
    """The language model that params name; None if they name none. Raises WeightsError for weights that are not there.

    device: as in params; it is looked for when the weights are loaded.
    """
    if llm.kind == "none" or llm.model is None:
        return None
    if llm.kind == "openai":
        return server(
            llm.model, endpoint.url, endpoint.concurrent, per_minute=endpoint.per_minute, timeout=endpoint.timeout
        )
    return weights(llm.model, llm.revision, device, endpoint.concurrent)


def server(
    model: str, url: str, concurrent: int = 8, *, per_minute: float | None = None, timeout: float = 60.0
) -> Model:
    """A model that an OpenAI-compatible server calls so."""

    def connect() -> Chat:
        from model.endpoint import Endpoint

        return Endpoint(url, model, concurrent=concurrent, per_minute=per_minute, timeout=timeout, retries=RETRIES)

    return Model({"endpoint_kind": "openai", "model_id": model, "revision": None}, connect)


def weights(source: str, revision: str | None, device: str = "auto", batch_size: int = 8) -> Model:
    """A model in this process, of a folder or of the Hub at a revision."""

    def connect() -> Chat:
        from flows.stage import pick_device
        from model.local_chat import LocalChat

        return LocalChat(source, revision, device=pick_device(device), batch_size=batch_size)

    name, found = _revision(source, revision)
    return Model({"endpoint_kind": "transformers", "model_id": name, "revision": found}, connect)


def _revision(source: str, revision: str | None) -> tuple[str, str]:
    """What weights are called, and their commit or, of a folder, the digest of its files."""
    from model.weights import digest_of, find_folder

    folder, name, commit = find_folder(source, revision)
    return name, commit or digest_of(folder)


def checks_of(rewriting: Rewriting, device: str) -> list[Check]:
    """The checks by networks that params ask for, each (source, proposal) -> verdicts. Loads the networks."""
    checks: list[Check] = []
    near, entails = rewriting.similarity, rewriting.entailment
    if near.source is None and entails.source is None:
        return checks
    from flows.stage import pick_device
    from model.entailment import Entailment, Similarity, entailment_verdict, similarity_verdict

    if near.source is not None:
        similarity = Similarity(near.source, near.revision, device=pick_device(device))

        def is_near(source: str, proposal: Mapping[str, Any]) -> list[Verdict]:
            cosine = similarity.cosines([(source, proposal["reversed_prompt"])])[0]
            band = (near.low, near.high)
            return [similarity_verdict(cosine, proposal["reversal_class"], band, marked=proposal["uses_marker"])]

        checks.append(is_near)
    if entails.source is not None:
        entailment = Entailment(entails.source, entails.revision, device=pick_device(device))

        def is_other(source: str, proposal: Mapping[str, Any]) -> list[Verdict]:
            found = entailment.probabilities([(source, proposal["reversed_prompt"])])[0]
            return [entailment_verdict(found, proposal["reversal_class"], marked=proposal["uses_marker"])]

        checks.append(is_other)
    return checks


class Answers(Mapping[str, dict[str, Any]]):
    """Answers by request digest: those of earlier runs and rounds, and new ones, on the disk as they come."""

    def __init__(self, path: Path, also: Iterable[Path] = ()):
        self._log = AnswerLog(path, also=list(also))
        self._known: set[str] = set()
        self.new: set[str] = set()

    def __getitem__(self, request: str) -> dict[str, Any]:
        found = self._log.get(request)
        if found is None:
            raise KeyError(request)
        return found

    def __contains__(self, request: object) -> bool:
        return request in self._log

    def __iter__(self) -> Iterator[str]:
        raise TypeError("answers are looked up, not listed")

    def __len__(self) -> int:
        return len(self._log)

    def add(self, request: str, answer: dict[str, Any]) -> None:
        """Keep a new answer."""
        self._log.add(request, answer)
        self.new.add(request)


def write_answers(path: Path, requests: Iterable[str], answers: Mapping[str, dict[str, Any]]) -> None:
    """The answers to these requests as a file that AnswerLog reads, in the order of digests, in one rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with draft.open("w", encoding="ascii") as file:
        for request in sorted(set(requests)):
            line = {"answer": answers[request], "digest": request}
            file.write(json.dumps(line, allow_nan=False, sort_keys=True, separators=(",", ":")) + "\n")
    draft.replace(path)


class Asker:
    """Advice of a language model to prompts, by even source prompt.

    rewriting: the section of params. random_seed: of params; every prompt's seeds come of it and of the prompt.
    """

    def __init__(self, rewriting: Rewriting, model: Model, random_seed: int, device: str = "auto"):
        from model.proposal import SCHEMA_DIGEST
        from model.template import load_template

        self.rewriting, self.model, self.random_seed, self.device = rewriting, model, random_seed, device
        self.template = load_template()
        self.digests = {"template": self.template.digest, "schema": SCHEMA_DIGEST, "llm": digest(model.identity())}
        for name, network in (("similarity", rewriting.similarity), ("entailment", rewriting.entailment)):
            if network.source is not None:
                self.digests[name] = digest(_revision(network.source, network.revision))
        self._checks: list[Check] | None = None

    def ask(self, prompts: Sequence[str], answers: Mapping[str, dict[str, Any]], add: Keep) -> dict[str, Advice]:
        """Asks about prompts what `answers` does not hold; what is answered is handed to `add` at once."""
        from model import llm

        if not prompts:
            return {}
        told = self.rewriting.llm
        if self._checks is None:
            self._checks = checks_of(self.rewriting, self.device)
        settings = llm.LlmSettings(
            max_tokens=told.max_tokens, top_p=told.top_p, temperature=told.temperature,
            retry_temperature=told.retry_temperature, retries=told.retries,
        )  # fmt: skip
        return llm.propose(
            prompts, self.model, self.template, settings,
            random_seed=self.random_seed, stored=answers, on_stored=add, extra_checks=self._checks,
        )  # fmt: skip


def requests_of(made: Rewrite) -> list[str]:
    """Digests of all that a language model was asked for a rewrite, in order; also the way back."""
    return [request for one in made.attempts for request in _requests(one)]


def _requests(one: Attempt) -> list[str]:
    facts = one.facts or {}
    return [facts[name] for name in ("request_digest", "back_request_digest") if facts.get(name)]


def row_of(made: Rewrite, run_id: str, answers: Container[str]) -> dict[str, Any]:
    """A rewrite as a row of `rewrites_rK`.

    answers: the requests that were answered. Of others no time is told: it would be another one every time.
    """
    requests = requests_of(made)
    asked = [one.facts for one in made.attempts if one.facts]
    attempts = [attempt_of(one, answers) for one in made.attempts]
    what = {
        "source": made.source_prompt, "prompt": made.prompt, "kind": made.kind, "version": made.version,
        "fallback_from": list(made.fallback_from), "requests": requests,
    }  # fmt: skip
    row = {
        "rewrite_id": make_id("rewrite", what),
        "prompt": made.prompt,
        "source_prompt": made.source_prompt,
        "reversal_class": made.reversal_class,
        "reasons": list(made.reasons),
        "marker_style": made.marker_style,
        "rewriter_kind": made.kind,
        "rewriter_version": made.version,
        "fallback_from": ",".join(made.fallback_from) or None,
        "spans": canonical_json(spans_of(made)),
        "verdicts": canonical_json(verdicts_of(made)),
        "num_attempts": len(attempts),
        "attempts": canonical_json(attempts),
        "raw_output": made.raw_output,
        "author": made.author,
        "was_derived_from": [],
        "was_generated_by": run_id,
    }
    if asked:
        last = asked[-1]
        row |= {
            "model_id": last.get("model"),
            "model_revision": last.get("revision"),
            "endpoint_kind": last.get("endpoint_kind"),
            "template_digest": last.get("template_digest"),
            "schema_digest": last.get("schema_digest"),
            "input_tokens": _sum(one["tokens"]["input"] for one in attempts if one["tokens"]),
            "output_tokens": _sum(one["tokens"]["output"] for one in attempts if one["tokens"]),
            "seconds": _sum(one["seconds"] for one in attempts),
        }
        if made.kind == "llm":
            row |= {
                "sampling": canonical_json(last["sampling"]),
                "seed": last["seed"],
                "request_digest": last["request_digest"],
            }
    return row


def attempt_of(one: Attempt, answers: Container[str] | None = None) -> dict[str, Any]:
    """An attempt as plain values; what only a language model's has is null for the others."""
    facts = one.facts or {}
    tokens = {"input": facts.get("input_tokens"), "output": facts.get("output_tokens")}
    answered = answers is None or all(request in answers for request in _requests(one))
    return {
        "rewriter": one.rewriter,
        "prompt": one.prompt,
        "raw_output": one.raw_output,
        "error": facts.get("error"),
        "verdicts": [_verdict(verdict) for verdict in one.verdicts],
        "request_digest": facts.get("request_digest"),
        "back_request_digest": facts.get("back_request_digest"),
        "model": facts.get("model"),
        "served_model": facts.get("served_model"),
        "sampling": facts.get("sampling"),
        "seed": facts.get("seed"),
        "finish_reason": facts.get("finish_reason"),
        "tokens": tokens if facts else None,
        "seconds": facts.get("seconds") if answered else None,
    }


def spans_of(made: Rewrite) -> list[dict[str, str]]:
    """What was changed."""
    return [{"source": one.source, "target": one.target, "kind": one.kind} for one in made.spans]


def verdicts_of(made: Rewrite) -> list[dict[str, Any]]:
    """What was found of the rewrite that stands."""
    return [_verdict(one) for one in made.verdicts]


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return {"name": verdict.name, "pass": verdict.passed, "detail": verdict.detail}


def _sum(values: Iterable[float | None]) -> Any:
    """The sum of those that are known; None if none is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None

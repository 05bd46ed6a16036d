"""Reversed prompts from a language model: ask, read, check, and ask again telling what was wrong.

Every prompt is asked once, greedily unless told otherwise. What passes the checks is reversed again, by the rules where
they can, else by the model: a rewrite that does not lead back is no reversal. Those whose answer cannot be read or
fails a check are asked again with the next seed, a little temperature and the reasons, at most `retries` times. Not so
where the model knows no plain words and took the marker, which needs no model, or left a prompt as it is that names no
motion: pressed further, it would invent one.

What a model has answered is kept under its request's digest and never asked again, so a rebuild replays a run without
a model. An endpoint's failure is no answer of the model's: that prompt is left as it is, and asked the same thing in
the next run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from model.chat import MAX_SEED, Answer, Chat, ChatError, Request
from model.proposal import SCHEMA, SCHEMA_DIGEST, Proposal, ProposalError, parse_proposal
from model.rewrite import Advice, Attempt, even
from model.rng import derive_seed
from model.rules import Span
from model.rules import reverse as reverse_by_rules
from model.template import Refused, Template
from model.verdicts import Verdict, check, round_trip

_SETTLED = ("motion",)  # checks of verdicts.py whose failure is no fault of the model's
_DETAIL = 300  # characters of a verdict's detail that the model is told

Check = Callable[[str, Mapping[str, Any]], Sequence[Verdict]]


class LlmError(ValueError):
    """A prompt that cannot be asked."""


@dataclass(frozen=True)
class LlmSettings:
    """How a model is asked: the first time at `temperature`, at most `retries` times more at `retry_temperature`."""

    max_tokens: int = 1024
    top_p: float = 1.0
    temperature: float = 0.0
    retries: int = 2
    retry_temperature: float = 0.4
    random_seed: int = 0


@dataclass(frozen=True)
class LlmAttempt:
    """One time that a prompt was asked.

    `proposal` is None where `error` says why there is none; `verdicts` begin with `answered` and `parses`, then come
    those of the check. `accepted`: all passed. `back`: how the model reversed its proposal again, where it was asked.
    """

    request: Request
    answer: Answer
    proposal: Proposal | None
    error: str | None
    verdicts: tuple[Verdict, ...]
    accepted: bool
    back: Answer | None = None

    def then(self, verdicts: Sequence[Verdict], back: Answer | None = None) -> LlmAttempt:
        """The same after more checks."""
        accepted = self.accepted and all(verdict.passed for verdict in verdicts)
        return replace(self, verdicts=(*self.verdicts, *verdicts), accepted=accepted, back=back or self.back)


def propose(
    prompts: Sequence[str],
    chat: Chat,
    template: Template,
    settings: LlmSettings,
    *,
    random_seed: int,
    stored: Mapping[str, Mapping[str, Any]],
    on_stored: Callable[[str, dict[str, Any]], None],
    extra_checks: Sequence[Check] = (),
) -> dict[str, Advice]:
    """What a model advises for each prompt, by even prompt: its last accepted proposal, and everything it was asked.

    extra_checks: further verdicts on what has passed all others, such as those of entailment.py. Otherwise as
    `ask_all`, with the checks of verdicts.py. Raises RewriteError for an empty prompt.
    """
    sources = list(dict.fromkeys(even(prompt) for prompt in prompts))
    told = replace(settings, random_seed=random_seed)
    asked = ask_all(sources, chat, template, told, check, stored=stored, on_stored=on_stored, extra_checks=extra_checks)
    version = _version(chat.identity(), template)
    return {source: _advice(attempts, template, version) for source, attempts in zip(sources, asked, strict=True)}


def _version(identity: Mapping[str, Any], template: Template) -> str:
    revision = str(identity["revision"])[:12] if identity["revision"] else "unknown"
    return f"{identity['model_id']}@{revision}, template {template.version}"


def _advice(attempts: Sequence[LlmAttempt], template: Template, version: str) -> Advice:
    tried = tuple(_attempt(one, template) for one in attempts)
    last, proposal = attempts[-1], attempts[-1].proposal
    if proposal is None or not (last.accepted or proposal.uses_marker):
        return Advice(None, None, (), tried, version)
    spans = tuple(Span(one.source, one.target, one.kind) for one in proposal.changed_spans)
    return Advice(proposal.reversed_prompt if last.accepted else None, proposal.reversal_class, spans, tried, version)


def _attempt(one: LlmAttempt, template: Template) -> Attempt:
    """An attempt with all that its provenance is made of."""
    request, answers = one.request, [one.answer, *([one.back] if one.back else [])]
    facts = {
        "request_digest": request.digest,
        "back_request_digest": one.back.request_digest if one.back else None,
        "model": request.model,
        "revision": one.answer.revision or request.revision,
        "served_model": one.answer.model,
        "endpoint_kind": request.endpoint_kind,
        "template_digest": template.digest,
        "schema_digest": SCHEMA_DIGEST,
        "sampling": {"temperature": request.temperature, "top_p": request.top_p, "max_tokens": request.max_tokens},
        "seed": request.seed,
        "finish_reason": one.answer.finish_reason,
        "input_tokens": _total([answer.input_tokens for answer in answers]),
        "output_tokens": _total([answer.output_tokens for answer in answers]),
        "seconds": sum(answer.seconds for answer in answers),
        "error": one.error,
    }
    text = one.proposal.reversed_prompt if one.proposal else None
    return Attempt("llm", text, one.verdicts, one.answer.text, facts)


def _total(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def ask_all(
    prompts: Sequence[str],
    chat: Chat,
    template: Template,
    settings: LlmSettings,
    check: Check,
    *,
    stored: Mapping[str, Mapping[str, Any]],
    on_stored: Callable[[str, dict[str, Any]], None],
    extra_checks: Sequence[Check] = (),
) -> list[list[LlmAttempt]]:
    """For each prompt its attempts in order, of which only the last may be accepted; equal prompts share them.

    `stored` maps request digests to answers as Answer.to_json gives them and is looked into first; each new answer of
    the model's goes to `on_stored` as it comes. `check` (source, proposal as SCHEMA has it) gives the verdicts; what
    passes is reversed again and then meets `extra_checks`. Raises LlmError for an empty prompt, before anything is
    asked, and ChatError for an endpoint that cannot be used.
    """
    for number, prompt in enumerate(prompts):
        if not isinstance(prompt, str) or not prompt.strip():
            raise LlmError(f"prompts[{number}] is {prompt!r}, expected a text")
    if settings.retries < 0:
        raise LlmError(f"retries is {settings.retries}, allowed is 0 or more")
    identity = chat.identity()
    attempts: dict[str, list[LlmAttempt]] = {prompt: [] for prompt in prompts}
    pending = list(attempts)
    for _ in range(1 + settings.retries):
        requests = [_request(prompt, attempts[prompt], identity, template, settings) for prompt in pending]
        answers = _answers(requests, chat, stored, on_stored)
        judged = {
            prompt: _judge(prompt, request, answer, check)
            for prompt, request, answer in zip(pending, requests, answers, strict=True)
        }
        judged |= _back(judged, chat, template, settings, stored, on_stored)
        for prompt, one in judged.items():
            if one.accepted and one.proposal is not None:
                one = one.then([v for extra in extra_checks for v in extra(prompt, one.proposal.to_json())])
            attempts[prompt].append(one)
        pending = [prompt for prompt in pending if _may_improve(attempts[prompt][-1])]
    return [list(attempts[prompt]) for prompt in prompts]


def _may_improve(attempt: LlmAttempt) -> bool:
    """Whether the model may do better if it is told what was wrong."""
    if attempt.accepted or not attempt.answer.is_final or (attempt.back is not None and not attempt.back.is_final):
        return False
    marked = attempt.proposal is not None and attempt.proposal.uses_marker
    return not marked and not any(verdict.name in _SETTLED and not verdict.passed for verdict in attempt.verdicts)


def _back(
    judged: Mapping[str, LlmAttempt],
    chat: Chat,
    template: Template,
    settings: LlmSettings,
    stored: Mapping[str, Mapping[str, Any]],
    on_stored: Callable[[str, dict[str, Any]], None],
) -> dict[str, LlmAttempt]:
    """The accepted ones after their proposals were reversed again: by the rules, else by the model, asked once."""
    done: dict[str, LlmAttempt] = {}
    asked: dict[str, Request] = {}
    identity = chat.identity()
    for prompt, one in judged.items():
        if one.accepted and one.proposal is not None:
            text = " ".join(one.proposal.reversed_prompt.split())
            if not text:
                done[prompt] = one.then([round_trip(prompt, None)])
            elif text == prompt or reverse_by_rules(text).prompt == prompt:
                done[prompt] = one.then([round_trip(prompt, prompt)])
            else:
                asked[prompt] = _request(text, (), identity, template, settings)
    answers = _answers(list(asked.values()), chat, stored, on_stored) if asked else []
    for prompt, answer in zip(asked, answers, strict=True):
        back = _judge(prompt, asked[prompt], answer, lambda _source, _proposal: ())
        returned = back.proposal.reversed_prompt if back.proposal and not back.proposal.uses_marker else None
        done[prompt] = judged[prompt].then([round_trip(prompt, returned)], answer)
    return done


def _request(
    prompt: str,
    before: Sequence[LlmAttempt],
    identity: Mapping[str, Any],
    template: Template,
    settings: LlmSettings,
) -> Request:
    """The next question about a prompt. Its seed comes of the prompt, so that neighbours do not matter."""
    seed = derive_seed("llm", settings.random_seed, prompt.encode("utf-8", "replace").decode()) + len(before)
    return Request(
        model=identity["model_id"],
        revision=identity["revision"],
        endpoint_kind=identity["endpoint_kind"],
        messages=template.messages(prompt, [_refused(attempt) for attempt in before]),
        schema=SCHEMA,
        temperature=settings.retry_temperature if before else settings.temperature,
        top_p=settings.top_p,
        max_tokens=settings.max_tokens,
        seed=seed & MAX_SEED,
    )


def _refused(attempt: LlmAttempt) -> Refused:
    because = [f"{v.name}: {v.detail[:_DETAIL]}" if v.detail else v.name for v in attempt.verdicts if not v.passed]
    return Refused(attempt.proposal.reversed_prompt if attempt.proposal else "", tuple(because))


def _answers(
    requests: Sequence[Request],
    chat: Chat,
    stored: Mapping[str, Mapping[str, Any]],
    on_stored: Callable[[str, dict[str, Any]], None],
) -> list[Answer]:
    """Answers in order: those that are kept, and those that the model gives now."""
    digests = [request.digest for request in requests]
    kept = {digest: _kept(digest, stored[digest]) for digest in digests if digest in stored}
    missing = {d: r for d, r in zip(digests, requests, strict=True) if d not in kept or not kept[d].is_final}

    def keep(answer: Answer) -> None:
        if answer.is_final:
            on_stored(answer.request_digest, answer.to_json())

    given = chat.ask(list(missing.values()), keep) if missing else []
    if [answer.request_digest for answer in given] != list(missing):
        raise ChatError(f"{len(missing)} requests came back as {len(given)} answers, or in another order")
    new = {answer.request_digest: answer for answer in given}
    return [new[digest] if digest in new else kept[digest] for digest in digests]


def _kept(digest: str, data: Mapping[str, Any]) -> Answer:
    answer = Answer.from_json(data)
    if answer.request_digest != digest:
        raise ChatError(f"the answer kept for request {digest} is one to {answer.request_digest[:80]!r}")
    return answer


def _judge(prompt: str, request: Request, answer: Answer, check: Check) -> LlmAttempt:
    if answer.error is not None:
        return LlmAttempt(request, answer, None, answer.error, (Verdict("answered", False, answer.error),), False)
    answered = Verdict("answered", True)
    try:
        if answer.finish_reason == "length":
            raise ProposalError(f"the answer was cut off after {request.max_tokens} tokens")
        proposal = parse_proposal(answer.text)
    except ProposalError as error:
        return LlmAttempt(request, answer, None, str(error), (answered, Verdict("parses", False, str(error))), False)
    verdicts = (answered, Verdict("parses", True), *check(prompt, proposal.to_json()))
    return LlmAttempt(request, answer, proposal, None, verdicts, all(verdict.passed for verdict in verdicts))

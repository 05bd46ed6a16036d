"""Asking a server that speaks OpenAI's /v1/chat/completions: vLLM, llama.cpp, SGLang, Ollama, or a vendor.

The wire is the `openai` client's; the retries are ours, since its own can neither be shortened nor summed up. Notable:
the first requests go alone and find out what the server takes (a JSON schema, a seed, …): what it refuses with 400 or
422 is left out from then on and named in `identity()`; the instructions ask for JSON in words too. An answer is read as
far as it can be, whatever its fields hold. One try is wire.py's; this module decides which, when and how often.

Errors of one request are in its Answer. ChatError is for an endpoint that no request can use: unreachable, 401, 403,
404, out of quota, or failing so often in a row that waiting for the rest would be in vain; what was answered before has
been handed over by then.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from model.chat import Answer, ChatError, Request, printable
from model.completion import answer_of
from model.wire import Failed, Refused, Unconnected, Wire, checked_url

if TYPE_CHECKING:
    import openai

MAX_BYTES = 4 * 2**20  # of a response; an answer has a few kB
PATIENCE = 600.0  # seconds for one request with all its tries and waits
BACKOFF = (0.5, 30.0)  # seconds before the second try, doubled each time; the longest such wait
FAILURES = 3  # in a row, as long as no request was ever answered, are taken for the server's state
REFUSALS = 10  # the same for HTTP 400 and the like, which may be for the request's own sake (too long a prompt)
_OPTIONAL = ("response_format", "seed", "top_p", "temperature")  # may be left out where a server refuses them


@dataclass
class _Progress:
    """What a call of ask() knows about its requests."""

    requests: Sequence[Request]
    on_answer: Callable[[Answer], None]
    started: int = 0
    answers: dict[int, Answer] = field(default_factory=dict)


class Endpoint:
    """A model behind an OpenAI-compatible URL such as http://127.0.0.1:8000/v1.

    `api_key` defaults to the environment's OPENAI_API_KEY; local servers need none. At most `concurrent` requests are
    in flight, at most `per_minute` tries start in a minute, evenly. `timeout` are seconds for one try as a whole,
    `retries` the tries after the first, `patience` seconds for all of them with the waits between: `backoff` (first,
    longest), doubled each time, with jitter, or what Retry-After says.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        api_key: str | None = None,
        concurrent: int = 8,
        per_minute: float | None = None,
        timeout: float = 60.0,
        retries: int = 4,
        patience: float = PATIENCE,
        backoff: tuple[float, float] = BACKOFF,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self.url, user = checked_url(url)
        if not model or not isinstance(model, str):
            raise ChatError(f"{self.url}: the model's name is {model!r}, expected what the server calls it")
        for name, value, least in (("concurrent", concurrent, 1), ("retries", retries, 0)):
            if not isinstance(value, int) or value < least:
                raise ChatError(f"{name} is {value!r}, allowed is a whole number from {least}")
        for name, number in (("timeout", timeout), ("patience", patience), ("per_minute", per_minute)):
            if number is not None and not 0 < number < float("inf"):
                raise ChatError(f"{name} is {number!r}, allowed is a number above 0")
        self.model, self.concurrent, self.retries = model, concurrent, retries
        self.patience, self.backoff = patience, backoff
        key = api_key or os.environ.get("OPENAI_API_KEY") or None
        self._wire = Wire(self.url, model, timeout, concurrent, max_bytes, key, user)
        self._spacing = 60 / per_minute if per_minute else 0.0
        self._next_start = 0.0
        self._left_out: frozenset[str] = frozenset()
        self._limit_field = "max_tokens"
        self._settled = False  # whether a request was answered, so that what the server takes is known
        self._prose = False  # whether an answer did not begin as JSON does: some servers take a schema and ignore it
        self._failures = 0  # in a row

    def __repr__(self) -> str:
        return f"Endpoint({self.url!r}, {self.model!r})"

    def identity(self) -> dict[str, Any]:
        """Who answers. `structured` tells whether the server holds the model to the JSON schema (None: not known yet),
        `left_out` what it refused. The URL is not in it: where a model runs does not matter to what it says."""
        import openai

        return {
            "endpoint_kind": "openai",
            "model_id": self.model,
            "revision": None,
            "backend": "openai",
            "backend_version": openai.__version__,
            "structured": "response_format" not in self._left_out and not self._prose if self._settled else None,
            "left_out": sorted(self._left_out),
        }

    def ask(self, requests: Sequence[Request], on_answer: Callable[[Answer], None] = lambda _: None) -> list[Answer]:
        """Answers in the order of the requests; see Chat.ask."""
        for request in requests:
            if request.endpoint_kind != "openai" or request.model != self.model:
                raise ChatError(f"a request is for {request.endpoint_kind} {request.model!r}, this is {self!r}")
        return asyncio.run(self._ask_all(requests, on_answer)) if requests else []

    # ------------------------------------------------------------ many requests

    async def _ask_all(self, requests: Sequence[Request], on_answer: Callable[[Answer], None]) -> list[Answer]:
        progress = _Progress(requests, on_answer)
        async with self._wire.client() as client:
            while not self._settled and progress.started < len(requests):
                await self._ask_next(client, progress)
            count = min(self.concurrent, len(requests) - progress.started)
            workers = [asyncio.create_task(self._work(client, progress)) for _ in range(count)]
            try:
                await asyncio.gather(*workers)
            finally:  # after an error, or Ctrl-C, nobody waits for the others
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
        return [progress.answers[n] for n in range(len(requests))]

    async def _work(self, client: openai.AsyncOpenAI, progress: _Progress) -> None:
        while progress.started < len(progress.requests):
            await self._ask_next(client, progress)

    async def _ask_next(self, client: openai.AsyncOpenAI, progress: _Progress) -> None:
        number = progress.started
        progress.started += 1
        request = progress.requests[number]
        await self._turn()
        begun = time.monotonic()
        failed = None
        try:
            data, tries = await self._ask_one(client, request, begun)
            answer = answer_of(data, request.digest, time.monotonic() - begun, tries)
            self._prose |= answer.finish_reason in ("stop", "length") and not answer.text.lstrip().startswith("{")
        except Failed as error:
            failed = error
            seconds = round(time.monotonic() - begun, 3)
            answer = Answer(request.digest, error=printable(error.message, 300), seconds=seconds, tries=error.tries)
        progress.answers[number] = answer
        progress.on_answer(answer)
        self._count(failed, more=progress.started < len(progress.requests))

    def _count(self, failed: Failed | None, more: bool) -> None:
        """Counts failures in a row. ChatError where they are too many for the rest, if any, to be worth a try."""
        if failed is None:
            self._failures, self._settled = 0, True
            return
        refused = isinstance(failed, Refused)
        if refused and self._settled:
            return  # the server does answer others
        self._failures += 1
        most = 2 * self.concurrent + FAILURES if self._settled else REFUSALS if refused else FAILURES
        if more and self._failures >= most:
            failures, self._failures = self._failures, 0
            raise ChatError(
                f"{self.url}: {failures} requests in a row got no answer from model {self.model!r}, the last: "
                f"{printable(failed.message, 300)}; look at the server, then run again: what was answered is kept"
            )

    # ------------------------------------------------------------ one request

    async def _ask_one(self, client: openai.AsyncOpenAI, request: Request, begun: float) -> tuple[dict[str, Any], int]:
        """The body of the response, and the number of tries. Failed, with `tries`, where there is none."""
        tries = 0
        while True:
            tries += 1
            form = self._left_out, self._limit_field
            try:
                return await self._wire.send(client, request, *form), tries
            except Refused as refused:
                if self._adapt(refused, *form):
                    tries -= 1  # that was a question about the server
                    await self._turn()
                    continue
                refused.tries = tries
                raise
            except Failed as failed:
                wait = self._wait(tries) if failed.wait is None else failed.wait
                late = time.monotonic() - begun + wait > self.patience
                if failed.again and tries <= self.retries and not late:
                    await asyncio.sleep(wait)
                    await self._turn()
                    continue
                failed.tries = tries
                if failed.again:
                    failed.message += f" after {tries} {'try' if tries == 1 else 'tries'}"
                if failed.again and late and tries <= self.retries:
                    failed.message += f"; the next would be in {wait:.0f} s"
                if isinstance(failed, Unconnected):
                    raise ChatError(
                        f"{self.url}: {failed.message}; start the server or name another endpoint, then run again: "
                        "what was answered is kept"
                    ) from None
                raise

    async def _turn(self) -> None:
        """Waits until per_minute allows another try."""
        now = time.monotonic()
        start = max(now, self._next_start)
        self._next_start = start + self._spacing
        if start > now:
            await asyncio.sleep(start - now)

    def _wait(self, tries: int) -> float:
        first, longest = self.backoff
        return min(first * 2 ** (tries - 1), longest) * random.uniform(0.75, 1.25)

    def _adapt(self, refused: Refused, left_out: frozenset[str], limit_field: str) -> bool:
        """Whether a refused request, sent in the form given, is worth asking again in another. As long as nothing was
        answered, what the server complains of is left out, and the schema also if it does not say of what."""
        if self._settled:
            return (left_out, limit_field) != (self._left_out, self._limit_field)
        if limit_field == "max_tokens" and "max_completion_tokens" in refused.body:
            self._limit_field = "max_completion_tokens"
            return True
        allowed = [name for name in _OPTIONAL if name not in left_out]
        named = [name for name in allowed if name == refused.param] or [n for n in allowed if n in refused.body]
        if found := named[:1] or [name for name in allowed if name == "response_format"]:
            self._left_out = left_out | frozenset(found)
            return True
        self._left_out, self._limit_field = frozenset(), "max_tokens"  # it was something else, of this request alone
        return False

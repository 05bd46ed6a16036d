"""The Prefect side of a stage that fans out: batches as tasks, with retries, progress and artifacts.

Prefect decides how the batches run, never what is done: results go to the stage's working table, and a resumed stage
asks that table what is missing and passes only those batches. Nothing is cached in or resumed from Prefect. A batch
should take seconds, since a task costs about 10 ms here and 25 ms in the server.
"""

from __future__ import annotations

import base64
import io
import math
import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, TypeVar

from flows.command import is_user_error
from flows.progress import note, progress_bar
from flows.server import prefect_server

Batch = TypeVar("Batch")
Result = TypeVar("Result")

RETRY_SECONDS = 1.0
SHEET_BYTES = 200_000  # an artifact sits in Prefect's database


@dataclass(frozen=True)
class FlowRun(Generic[Result]):
    """What a run gave: a result for every batch, in order, and the id under which Prefect knows it."""

    results: list[Result]
    flow_run_id: str


def run_batches(
    name: str,
    batches: Sequence[Batch],
    work: Callable[[Batch], Result],
    *,
    workers: int,
    retries: int = 2,
    unit: str = "clip",
    done: int = 0,
    describe: Callable[[Batch], str] | None = None,
    report: Callable[[], None] | None = None,
) -> FlowRun[Result]:
    """Runs `work` on every batch, in threads, as one Prefect flow.

    Args:
        name: of the flow run, as `Stage.label` gives it: `rollout-r1` is a run of the flow `rollout`.
        batches: what is missing; may be empty. The bar counts the items of sized batches, else the batches.
        work: makes and stores one batch and returns something small. It runs in several threads, may run again after it
            failed, and itself decides which items to skip with a reason.
        workers: batches at once.
        retries: further tries of a batch that failed. A user's error is not tried again.
        unit: what the bar counts.
        done: items that an earlier run has made; the bar starts there.
        describe: names a batch in messages and in Prefect's UI.
        report: runs after the last batch, inside the flow: the place for `publish_sheet` and `publish_table`.

    Raises:
        Exception: what `work` raised at the last try of the first batch that stayed without success. Batches that are
            running are finished first, others do not start.
        ServerError: there is no Prefect server.
    """
    with prefect_server() as url:
        from prefect import flow, task
        from prefect.futures import PrefectFuture
        from prefect.runtime import flow_run, task_run
        from prefect.settings import PREFECT_API_URL, PREFECT_LOGGING_LEVEL, temporary_settings
        from prefect.task_runners import ThreadPoolTaskRunner

        origins: dict[int, TracebackType | None] = {}
        sizes = [_size(batch) for batch in batches]
        bar = progress_bar(done + sum(sizes), name, unit, done)

        def label(index: int) -> str:
            more = f" ({describe(batches[index])})" if describe else ""
            return f"batch {index + 1} of {len(batches)}{more}"

        @task(
            name=f"{name.partition('-')[0]}-batch",
            task_run_name=lambda: label(task_run.parameters["index"]),
            retries=retries,
            retry_delay_seconds=RETRY_SECONDS,
            retry_condition_fn=lambda _task, _run, state: not is_user_error(state.result(raise_on_failure=False)),
            persist_result=False,
        )
        def one(index: int) -> Result:
            try:
                result = work(batches[index])
            except Exception as error:
                origins[id(error)] = error.__traceback__.tb_next if error.__traceback__ else None
                if not is_user_error(error):
                    seen = f"{type(error).__name__}: {error}".partition("\n")[0]
                    note(f"{name}: {label(index)} failed, try {task_run.run_count} of {retries + 1}: {seen}")
                raise
            bar.update(sizes[index])
            return result

        @flow(
            name=name.partition("-")[0],
            flow_run_name=name,
            task_runner=ThreadPoolTaskRunner(max_workers=workers),
            validate_parameters=False,
            persist_result=False,
        )
        def fan_out() -> FlowRun[Result]:
            futures: list[PrefectFuture[Result]] = [one.submit(index) for index in range(len(batches))]
            results = [future.result() for future in futures]
            if report:
                report()
            return FlowRun(results, str(flow_run.get_id()))

        level = os.environ.get("PREFECT_LOGGING_LEVEL", "CRITICAL")  # the flow's error is ours to print, in one line
        with bar, temporary_settings({PREFECT_API_URL: url, PREFECT_LOGGING_LEVEL: level}):
            try:
                return fan_out()
            except Exception as error:
                failure = error
            # as if `work` had been called from here, without the forty calls in between that are Prefect's
            raise failure.with_traceback(origins.get(id(failure), failure.__traceback__))


def per_thread(make: Callable[[], Result]) -> Callable[[], Result]:
    """A function that gives each thread a thing of its own, made when it first asks.

    For models: a causal transformer and a Wan VAE keep the state of the call they are in, so two threads that share
    one get each other's frames.
    """
    own, one_at_a_time = threading.local(), threading.Lock()  # transformers cannot load two models at once

    def get() -> Result:
        if not hasattr(own, "thing"):
            with one_at_a_time:
                own.thing = make()
        thing: Result = own.thing
        return thing

    return get


def chunked(items: Sequence[Batch], size: int) -> list[list[Batch]]:
    """Consecutive pieces of `size`; the last may be shorter."""
    return [list(items[start : start + size]) for start in range(0, len(items), size)]


def publish_sheet(key: str, png: bytes, description: str = "") -> None:
    """Shows an image with the flow run. Call it from `report`.

    Args:
        key: what it is, the same in every run: `rollout-r1-sheet`; Prefect keeps a history for each key.
        png: a PNG file; above 200 KB a smaller JPEG of it is kept.
        description: markdown.
    """
    from prefect.artifacts import create_image_artifact

    kind, data = "png", png
    if len(png) > SHEET_BYTES:
        kind, data = "jpeg", _smaller(png)
    uri = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    create_image_artifact(image_url=uri, key=_key(key), description=description or None)


def publish_table(key: str, rows: Sequence[Mapping[str, Any]], description: str = "") -> None:
    """Shows a table with the flow run; numbers are rounded to four digits. Call it from `report`."""
    from prefect.artifacts import create_table_artifact

    table = [{name: _cell(value) for name, value in row.items()} for row in rows]
    create_table_artifact(table=table, key=_key(key), description=description or None)


def _size(batch: Any) -> int:
    return len(batch) if hasattr(batch, "__len__") else 1


def _key(key: str) -> str:
    """Prefect's artifact keys are of lowercase letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", key.lower()).strip("-")


def _cell(value: Any) -> Any:
    """What JSON can hold: NaN is nothing, numpy scalars are numbers."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    return value


def _smaller(png: bytes) -> bytes:
    """A JPEG below the limit, of half the size as often as it takes."""
    from PIL import Image

    image = Image.open(io.BytesIO(png)).convert("RGB")
    while True:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=85)
        if buffer.tell() <= SHEET_BYTES:
            return buffer.getvalue()
        image = image.resize((max(1, image.width // 2), max(1, image.height // 2)))

"""Stage `rewrite@rK`: the prompt of every rollout becomes one that is true of it played backwards, with its provenance.

Who rewrites is decided in model/rewrite.py; people's own rewrites stand in rewrites.yaml. A row is a distinct prompt.

Notable: what a language model answers is kept under the digest of what it was asked: at once in the work folder, and in
the end in data/answers/rK.jsonl, which holds the answers that this round's rewrites came of and no others. Later runs
and other rounds take them from there, so a run that was killed asks only what is missing, and a rebuild nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flows import paths
from flows.batches import chunked, publish_table, run_batches
from flows.command import command, say
from flows.overrides import read_overrides, used_by
from flows.params import Params
from flows.rewriter import Answers, Asker, model_of, requests_of, row_of, write_answers
from flows.stage import WORK_FOLDER, Stage
from model.rewrite import even, rewrite_all, versions, wants_model
from store.digest import digest
from store.schema import table_schema
from store.table import WorkingTable, read_manifest, read_table

BATCH = 64  # prompts that a language model is asked about at a time
RULED = 1024  # prompts at a time where none is
ANSWERS = "answers.jsonl"  # in the work folder
TOLD = ("rewrite_id", "reversal_class", "marker_style", "rewriter_kind")


class PromptsError(ValueError):
    """Rollouts whose prompts cannot be rewritten."""


def main(params: Params, round: str) -> None:
    name, rollouts = f"rewrites_{round}", f"rollouts_{round}"
    rewriting = params.rewrite
    prompts = prompts_of(rollouts)
    by_hand = read_overrides(paths.OVERRIDES)
    overrides = used_by(by_hand, prompts)
    model = model_of(rewriting.llm, params.resources.endpoint, params.resources.device)
    asker = Asker(rewriting, model, params.random_seed, params.resources.device) if model else None
    with Stage(
        "rewrite", round,
        params={"rewriters": versions(), "style": rewriting.style}
        | ({"random_seed": params.random_seed, **rewriting.model_dump(exclude={"style"})} if asker else {}),
        inputs={"rollouts": read_manifest(paths.manifest(rollouts)).digest,
                "overrides": digest({source: one.version for source, one in overrides.items()})}
        | (asker.digests if asker else {}),
    ) as stage:  # fmt: skip
        answers = Answers(stage.work / ANSWERS, kept_answers(stage, round) if asker else ())
        schema, key = table_schema(name)
        table = WorkingTable(stage.work, name, schema, key)

        told: dict[str, dict[str, Any]] = {}  # by prompt

        def work(batch: list[str]) -> None:
            wanted = [one for one in dict.fromkeys(map(even, batch))
                      if one not in overrides and wants_model(one, rewriting.style)]  # fmt: skip
            advice = asker.ask(wanted, answers, answers.add) if asker else {}
            made = rewrite_all(batch, rewriting.style, overrides=overrides, advice=advice)
            rows = [row_of(one, stage.run_id, answers) for one in made]
            table.upsert(rows)
            for row, one in zip(rows, made, strict=True):  # a batch that is tried again may come out otherwise
                told[one.source_prompt] = {name: row[name] for name in TOLD} | {"requests": requests_of(one)}

        def report() -> None:
            counts = Counter(tuple(one[name] for name in TOLD[1:]) for one in told.values())
            rows = [dict(zip(TOLD[1:], one, strict=True)) | {"rewrites": count} for one, count in counts.most_common()]
            publish_table(f"rewrites-{round}", rows, "Rewrites by class, marker and rewriter.")

        # Everything is gone through again by a run that continues another: ids depend on answers, which are kept.
        run = run_batches(
            stage.label, chunked(prompts, BATCH if asker else RULED), work, workers=1, unit="prompt", report=report
        )
        stage.flow_run_id = run.flow_run_id
        asked = {request for one in told.values() for request in one["requests"]}
        used = {request for request in asked if request in answers}
        write_answers(paths.answers(round), used, answers)
        manifest = table.seal(paths.STORE, paths.manifest(name), [one["rewrite_id"] for one in told.values()])
        stage.outputs = {"table": name, "digest": manifest.digest, "rewrites": manifest.rows}
        of = f" ({len(overrides)} of {len(by_hand)} entries of {paths.OVERRIDES} used)" if by_hand else ""
        say(f"{stage.label}: {manifest.rows} prompts: {_kinds(told.values()) or 'none'}{of}")
        if asker:
            lost = len(asked) - len(used)
            stage.outputs |= {"answers": len(used), "new_answers": len(used & answers.new), "unanswered": lost}
            say(f"{stage.label}: {_asking(told.values(), len(used), len(used & answers.new))}")
            if lost:
                say(f"{stage.label}: {lost} questions got no answer; `dvc repro -f rewrite@{round}` asks them again")


def prompts_of(rollouts: str) -> list[str]:
    """The distinct prompts of a round's rollouts, sorted. Raises PromptsError for an empty one."""
    rows = read_table(paths.STORE, rollouts, ["rollout_id", "prompt"]).to_pylist()
    for row in rows:
        if not row["prompt"].strip():
            raise PromptsError(f"{rollouts}: the prompt of {row['rollout_id']} is empty; expected a sentence")
    return sorted({row["prompt"] for row in rows})


def kept_answers(stage: Stage, round: str) -> list[Path]:
    """Files of answers of earlier runs, the first of which counts: of this round, of runs of it that were killed, by
    whatever code, and of the other rounds."""
    left = sorted(WORK_FOLDER.glob(f"{stage.label}-*/{ANSWERS}"))
    sealed = sorted(paths.ANSWERS.glob("*.jsonl"), key=lambda path: (path != paths.answers(round), path))
    own = [path for path in sealed[:1] if path == paths.answers(round)]
    return [*own, *(path for path in left if path.parent != stage.work), *sealed[len(own) :]]


def _kinds(rows: Iterable[dict[str, Any]]) -> str:
    counts = Counter(one["rewriter_kind"] for one in rows)
    return ", ".join(f"{count} by {kind}" for kind, count in counts.most_common())


def _asking(rows: Iterable[dict[str, Any]], used: int, new: int) -> str:
    asked = [one for one in rows if one["requests"]]
    refused = [one for one in asked if one["rewriter_kind"] != "llm"]
    instead = f" and rewritten {_kinds(refused)}" if refused else ""
    return (
        f"a language model was asked about {len(asked)} prompts, with {used - new} answers kept from before and {new} "
        f"new: {len(asked) - len(refused)} accepted, {len(refused)} not{instead}"
    )


if __name__ == "__main__":
    command(main)

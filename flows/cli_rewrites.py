"""`bagger reverse` and `bagger rewrites`: what is true of a clip played backwards, and a review of what was said so.

Notable: reversing needs no project, no torch and no network unless a language model is named. Prompts and answers of
language models are hostile texts: to a person they are shown with nothing in them that steers a terminal.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from flows import paths
from flows.command import say
from flows.console import CommandError, StoreUri, command_group, open_store, print_json, print_table
from store.errors import nearest, printable

if TYPE_CHECKING:
    from flows.rewriter import Asker
    from model.rewrite import Advice, Override, Rewrite, Style
    from store import Store

STYLES = ("auto", "prefix", "inverted")
URL = "http://localhost:8000/v1"
ASKED = 64  # prompts that a language model is asked about at a time
STDIN = Path("-")
LISTED = ("rewrite_id", "round", "kind", "class", "style", "source", "prompt")
SUMMED = ("group", "name", "count", "share")
PARSED = ("spans", "verdicts", "attempts", "sampling")  # columns of JSON

app = command_group()

Objects = Annotated[bool, typer.Option("--json", help="Print one JSON array of objects, and nothing else.")]


# ---------------------------------------------------------------------------------------------------------- reverse


@app.command(
    epilog="""\b
Examples:
  bagger reverse "a car turns left into a tunnel"
  bagger reverse "a dog runs out of a house, then a door closes" --explain     why, and what was checked
  bagger reverse --file PROMPTS.txt --json                one prompt a line; - reads standard input
  bagger reverse --style prefix "snow falls on a town"    with the marker, whatever it is
  bagger reverse --model qwen3 --url http://localhost:11434/v1 "a ship sails into a harbor at dawn"
  bagger reverse --local models/Qwen3-1.7B --file PROMPTS.txt --explain

\b
Classes, of the motion that is told:
  invariant      backwards it looks the same             a flag waves
  equivariant    backwards it is another such motion     a ball rolls to the left
  novel          backwards it can be told, and is rare   a man walks into a house
  irreversible   backwards it cannot happen              a glass shatters"""
)
def reverse(
    prompts: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT", help="What a clip shows.", show_default=False)
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Prompts, one a line; blank lines are skipped. - is standard input."),
    ] = None,
    style: Annotated[
        str,
        typer.Option(
            metavar="STYLE",
            help="prefix: `A reversed video of …` before every prompt; inverted: words turned where that is sure, else "
            "so; auto: so too, and where no motion is named.",
        ),
    ] = "auto",
    explain: Annotated[
        bool, typer.Option("--explain", help="Also why, and what was tried before; of every prompt.")
    ] = False,
    as_json: Objects = False,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="First ask this model of a server; its key: OPENAI_API_KEY.")
    ] = None,
    url: Annotated[
        str | None, typer.Option(metavar="URL", help=f"The server, OpenAI-compatible; else {URL}. With --model.")
    ] = None,
    local: Annotated[
        str | None, typer.Option(metavar="DIR", help="First ask this language model, a folder or Hub id, in-process.")
    ] = None,
) -> None:
    """Say of a prompt what is true of its clip played backwards.

    By the rules, unless they are unsure: then the marker stands before the prompt. A sentence of the toy world is
    turned exactly. What rewrites.yaml in this folder says of a prompt stands before all that.

    With --json each object has prompt, reversed, class, style, kind (who rewrote it), version, author, reasons, spans,
    verdicts, fallback_from (who gave up before) and attempts.
    """
    if style not in STYLES:
        raise CommandError(f"--style {style!r}: expected {', '.join(STYLES)}{nearest(style, STYLES)}")
    asker = _asker(style, model, url, local)
    asked = _prompts(prompts or [], file)
    by_hand = _by_hand()
    made = _reverse(asked, cast("Style", style), by_hand, asker)
    if as_json:
        print_json(map(object_of, made))
    elif explain or len(made) == 1:
        if explain and by_hand:
            used = sum(one.kind == "override" for one in made)
            say(f"{paths.OVERRIDES}: {len(by_hand)} rewrites by hand, used for {used} of {len(made)} prompts")
        print("\n\n".join(_block(one, explain, named=len(made) > 1) for one in made))
    else:
        rows = [{"class": one.reversal_class, "style": one.marker_style, "reversed": one.prompt} for one in made]
        print_table(rows, ["class", "style", "reversed"])


def object_of(made: Rewrite) -> dict[str, Any]:
    """A rewrite for --json."""
    from flows.rewriter import attempt_of, spans_of, verdicts_of

    return {
        "prompt": made.source_prompt,
        "reversed": made.prompt,
        "class": made.reversal_class,
        "style": made.marker_style,
        "kind": made.kind,
        "version": made.version,
        "author": made.author,
        "reasons": list(made.reasons),
        "spans": spans_of(made),
        "verdicts": verdicts_of(made),
        "fallback_from": list(made.fallback_from),
        "attempts": [attempt_of(one) for one in made.attempts],
    }


def _prompts(given: Sequence[str], file: Path | None) -> list[str]:
    if given and file is not None:
        raise CommandError("PROMPT and --file exclude each other")
    if file is not None:
        return _lines(file)
    if not given:
        raise CommandError("nothing to reverse; give a PROMPT, or --file FILE (- is standard input)")
    for number, one in enumerate(given, 1):
        if not one.strip():
            raise CommandError(f"PROMPT {number}: found {one!r}; expected a sentence")
    return list(given)


def _lines(file: Path) -> list[str]:
    """The lines of a file that are not blank, as they are."""
    name = "standard input" if file == STDIN else str(file)
    try:
        data = sys.stdin.buffer.read() if file == STDIN else file.read_bytes()
    except OSError as error:
        raise CommandError(f"--file {file}: cannot be read: {error.strerror}") from error
    found = []
    # not splitlines: no editor counts a form feed or U+2028 as the end of a line
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        try:
            text = line.removesuffix(b"\r").decode()
        except UnicodeDecodeError as error:
            raise CommandError(
                f"--file {file}: line {number}: not UTF-8 text: {error.reason} at byte {error.start + 1} of the line"
            ) from None
        if text.strip():
            found.append(text)
    if not found:
        raise CommandError(f"--file {file}: no prompt in {name}; expected one a line")
    return found


def _by_hand() -> dict[str, Override]:
    if not paths.OVERRIDES.is_file():
        return {}
    from flows.overrides import read_overrides

    return read_overrides(paths.OVERRIDES)


def _asker(style: str, model: str | None, url: str | None, local: str | None) -> Asker | None:
    """The language model that is asked first, if one is named."""
    if url is not None and model is None:
        raise CommandError("--url says where a model is served; name it: --model NAME")
    if model is not None and local is not None:
        raise CommandError("--model and --local exclude each other")
    if model is None and local is None:
        return None
    from flows.params import Entailment, LanguageModel, Rewriting, Similarity
    from flows.rewriter import Asker, server, weights

    kind, name = ("openai", model) if model is not None else ("transformers", local)
    if not name:
        raise CommandError(f"{'--model' if model is not None else '--local'}: found ''; expected a model's name")
    llm = LanguageModel(
        kind=cast("Any", kind), model=name, revision=None, temperature=0.0, retry_temperature=0.4, top_p=1.0,
        max_tokens=512, retries=2,
    )  # fmt: skip
    none: dict[str, Any] = {"source": None, "revision": None}
    rewriting = Rewriting(
        style=cast("Any", style), llm=llm, similarity=Similarity(**none, low=0.0, high=1.0),
        entailment=Entailment(**none),
    )  # fmt: skip
    return Asker(rewriting, server(name, url or URL) if model is not None else weights(name, None), 0)


def _reverse(prompts: Sequence[str], style: Style, by_hand: dict[str, Override], asker: Asker | None) -> list[Rewrite]:
    from model.rewrite import even, rewrite_all, wants_model

    advice: dict[str, Advice] = {}
    if asker is not None:
        wanted = [one for one in dict.fromkeys(map(even, prompts)) if one not in by_hand and wants_model(one, style)]
        from flows.progress import progress_bar

        with progress_bar(len(wanted), "asking", "prompt") if len(wanted) > 1 else contextlib.nullcontext() as bar:
            for start in range(0, len(wanted), ASKED):
                batch = wanted[start : start + ASKED]
                advice |= asker.ask(batch, {}, lambda _request, _answer: None)
                if bar is not None:
                    bar.update(len(batch))
    return rewrite_all(prompts, style, overrides=by_hand, advice=advice)


def _block(made: Rewrite, explain: bool, named: bool) -> str:
    """A rewrite for a person, a line a fact."""
    lines = [("prompt", made.source_prompt)] if named else []
    lines += [
        ("class", made.reversal_class), ("style", made.marker_style), ("reversed", made.prompt),
        ("by", f"{made.kind} {made.version}" + (f" ({made.author})" if made.author else "")),
    ]  # fmt: skip
    if explain:
        lines += [("why", one) for one in made.reasons]
    lines += [("changed", f"{one.source or '-'} → {one.target or '-'} ({one.kind})") for one in made.spans]
    lines += [("check", _check(one.name, one.passed, one.detail)) for one in made.verdicts]
    if explain:
        if made.fallback_from:
            lines.append(("instead of", ", ".join(made.fallback_from)))
        for one in made.attempts[:-1]:
            failed = [_check(verdict.name, False, verdict.detail) for verdict in one.verdicts if not verdict.passed]
            said = f" {one.prompt!r}" if one.prompt is not None else ""
            lines.append(("tried", f"{one.rewriter}{said}: {'; '.join(failed) or 'passed'}"))
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {printable(text)}" for name, text in lines)


def _check(name: str, passed: bool, detail: str) -> str:
    return f"{name} {'passed' if passed else 'failed'}{f': {detail}' if detail else ''}"


# --------------------------------------------------------------------------------------------------------- rewrites


def _many(name: str, metavar: str, text: str) -> Any:
    return typer.Option(name, metavar=metavar, help=f"{text} Again for one more.")


@app.command(
    epilog="""\b
Examples:
  bagger rewrites --round r2                         the prompts of a round and what became of them
  bagger rewrites --rejected                         what was turned down or given up, and why
  bagger rewrites --rejected --yaml >> rewrites.yaml entries to be set right by hand
  bagger rewrites --kind prefix --class equivariant  what the rules could still learn
  bagger rewrites --summary                          by class, marker and rewriter; which checks failed; tokens and time
  bagger rewrites --round r1 --json                  everything that is known of each"""
)
def rewrites(
    round: Annotated[list[str] | None, _many("--round", "rK", "Only the prompts of this round.")] = None,
    rejected: Annotated[
        bool, typer.Option("--rejected", help="Only those of which an attempt was turned down, and why.")
    ] = False,
    fallback: Annotated[bool, typer.Option("--fallback", help="Only those that a rewriter gave up before.")] = False,
    kind: Annotated[
        list[str] | None, _many("--kind", "KIND", "By whom: override, toy-grammar, llm, rules, prefix.")
    ] = None,
    reversal_class: Annotated[
        list[str] | None, _many("--class", "CLASS", "invariant, equivariant, novel, irreversible, unknown.")
    ] = None,
    style: Annotated[list[str] | None, _many("--style", "STYLE", "Its marker: prefix, inverted, none.")] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", min=0, help="At most so many.")] = None,
    summary: Annotated[bool, typer.Option("--summary", help="Counts instead of rewrites.")] = False,
    as_yaml: Annotated[bool, typer.Option("--yaml", help=f"Entries to be pasted into {paths.OVERRIDES}.")] = False,
    as_json: Objects = False,
    store: StoreUri = str(paths.STORE),
) -> None:
    """Review how prompts were turned into ones of clips that play backwards.

    With --json each object has the columns of the tables of rewrites, as docs/store.md tells them, and the rounds.
    """
    if as_yaml and (as_json or summary):
        raise CommandError(f"--yaml and {'--json' if as_json else '--summary'} exclude each other")
    for name, given, known in (
        ("--kind", kind, ("override", "toy-grammar", "llm", "rules", "prefix")),
        ("--class", reversal_class, ("invariant", "equivariant", "novel", "irreversible", "unknown")),
        ("--style", style, ("prefix", "inverted", "none")),
    ):
        for one in given or ():
            if one not in known:
                raise CommandError(f"{name} {one!r}: expected {', '.join(known)}{nearest(one, known)}")
    found = [
        row
        for row in rows_of(open_store(store), round)
        if (kind is None or row["rewriter_kind"] in kind)
        and (reversal_class is None or row["reversal_class"] in reversal_class)
        and (style is None or row["marker_style"] in style)
        and (not fallback or row["fallback_from"])
        and (not rejected or failures(row))
    ][:limit]
    if summary:
        rows = summary_of(found)
        print_json(rows) if as_json else print_table(rows, SUMMED, "no such rewrites")
    elif as_json:
        print_json(found)
    elif as_yaml:
        _print_yaml(found)
    else:
        names = {"kind": "rewriter_kind", "class": "reversal_class", "style": "marker_style", "source": "source_prompt"}
        listed = [{one: row[names.get(one, one)] for one in LISTED} for row in found]
        if rejected:
            listed = [one | {"because": "; ".join(failures(row))} for one, row in zip(listed, found, strict=True)]
        print_table(listed, [*LISTED, *(["because"] if rejected else [])], "no such rewrites")


def rows_of(store: Store, rounds: Sequence[str] | None) -> list[dict[str, Any]]:
    """Rewrites with columns of JSON parsed and the rounds that have them, by source prompt; each once.

    Raises StoreError for a round, or a store, that has none.
    """
    registry = store.has("catalog") and store.is_registry  # a project has its catalog last
    rounds_of = _runs(store) if registry else {}
    names = ["rewrites"] if registry else [f"rewrites_{k}" for k in rounds or []] or store.tables("rewrites")
    if not names:
        for name in ("catalog", "rewrites_r1"):  # says what is missing or of an older schema, and what mends it
            store.open(name)
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for name in names:
        for row in store.read(name).to_pylist():
            of = rounds_of.get(row["was_generated_by"], "") if registry else name.partition("_")[2]
            if rounds and of not in rounds:
                continue
            key = (row["rewrite_id"], row["was_generated_by"] if registry else "")
            if key in found:
                found[key]["round"] += f",{of}"
                continue
            parsed = {column: row[column] and json.loads(row[column]) for column in PARSED}
            found[key] = {"rewrite_id": row["rewrite_id"], "round": of, **row, **parsed}
    return sorted(found.values(), key=lambda row: (row["source_prompt"], row["rewrite_id"], row["round"]))


def _runs(store: Store) -> dict[str, str]:
    """Runs of a registry and their rounds."""
    return {one["run_id"]: one["round"] or "" for one in store.read("runs", ["run_id", "round"]).to_pylist()}


def failures(row: dict[str, Any]) -> list[str]:
    """What was turned down on the way to a rewrite, and why: `llm: entities: lost: ball`."""
    told = []
    for one in row["attempts"]:
        failed = [verdict for verdict in one.get("verdicts") or [] if not verdict["pass"]]
        why = [f"{verdict['name']}: {verdict.get('detail')}" if verdict.get("detail") else verdict["name"]
               for verdict in failed]  # fmt: skip
        if not failed and one.get("error"):
            why = [str(one["error"])]
        if why:
            told.append(f"{one.get('rewriter')}: {', '.join(why)}")
    if not told and row["fallback_from"]:  # of older schemas, which kept no attempts
        told.append(f"{row['fallback_from']}: gave up")
    return told


def summary_of(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Counts by class, marker and rewriter with their shares, checks of language models' answers that were passed with
    their share of those that were made, and what these cost."""
    groups = {"class": "reversal_class", "style": "marker_style", "kind": "rewriter_kind"}
    told = [
        {"group": group, "name": name, "count": count, "share": _share(count, len(rows))}
        for group, column in groups.items()
        for name, count in _counts(row[column] for row in rows)
    ]
    reached: Counter[str] = Counter()
    passed: Counter[str] = Counter()
    for row in rows:
        for one in row["attempts"]:
            if one.get("rewriter") == "llm":
                reached.update(verdict["name"] for verdict in one["verdicts"])
                passed.update(verdict["name"] for verdict in one["verdicts"] if verdict["pass"])
    told += [
        {"group": "check passed", "name": name, "count": passed[name], "share": _share(passed[name], count)}
        for name, count in reached.items()
    ]
    for name in ("input_tokens", "output_tokens", "seconds"):
        if known := [row[name] for row in rows if row[name] is not None]:
            told.append({"group": "cost", "name": name, "count": round(sum(known), 3), "share": None})
    return told


def _counts(values: Iterable[str]) -> list[tuple[str, int]]:
    return sorted(Counter(values).items(), key=lambda one: (-one[1], one[0]))


def _share(count: int, of: int) -> float:
    return round(count / of, 4)


def _print_yaml(rows: Sequence[dict[str, Any]]) -> None:
    """Entries with the prompts that stand; what was proposed and turned down as comments."""
    from flows.overrides import OverridesError, entry_yaml, quoted

    for source, row in {row["source_prompt"]: row for row in rows}.items():
        try:
            entry = entry_yaml(source, row["prompt"])
        except OverridesError as error:
            say(f"{row['rewrite_id']} is left out: {printable(str(error))}")
            continue
        print(f"# {row['rewriter_kind']}, {row['reversal_class']}")
        for one in row["attempts"][:-1]:
            if one.get("prompt"):
                print(f"#   {one['rewriter']} proposed {quoted(one['prompt'])}")
        for why in failures(row):
            print(f"#   {printable(why)}")
        print(f"{entry}\n")
    if not rows:
        say("no such rewrites")

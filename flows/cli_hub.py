"""`bagger publish`, `publish-model` and `fetch`: rounds and models to the Hugging Face Hub and back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows import paths
from flows.command import say
from flows.console import CommandError, Json, command_group, print_json, print_table

if TYPE_CHECKING:
    from flows.publish import Result
    from store.hub import Published

TOKEN = """\b
The token comes from where Hugging Face's tools take it, never from the command line:
  hf auth login           once on this machine, or
  HF_TOKEN                for this command; HF_ENDPOINT names another Hub"""

Repo = Annotated[str | None, typer.Option("--repo", metavar="ORG/NAME", help="The repository on the Hub.")]
Round = Annotated[str, typer.Option("--round", metavar="rK", help="The round.")]
Public = Annotated[
    bool | None,
    typer.Option("--public/--private", help="What the repository must be; left out, a new one is private."),
]
Retag = Annotated[bool, typer.Option("--retag", help="Move the tag of the round if it names something else.")]

app = command_group()


@app.command(
    epilog=f"""\b
Examples:
  bagger publish --round r2 --repo lab/clips --dry-run        what would be uploaded, and what of it is new
  bagger publish --round r2 --repo lab/clips                  one commit, then the tag r2; a new repository is private
  bagger publish --round r2 --repo lab/clips --include-seed --public
  bagger publish --round r2 --repo lab/clips --filter "drift < 20 and verdict = 'passed'"
  bagger publish --round r2 --out published                   the same files in a folder, without the Hub
Then, anywhere:
  python -c 'from datasets import load_dataset; print(load_dataset("lab/clips", "r2", revision="r2"))'

{TOKEN}"""
)
def publish(
    round: Round,
    repo: Repo = None,
    public: Public = None,
    where: Annotated[
        str | None,
        typer.Option("--filter", metavar="WHERE", help="Only clips of which this holds, as of `bagger clips`."),
    ] = None,
    include_seed: Annotated[bool, typer.Option("--include-seed", help="The seed clips too, as round r0.")] = False,
    license: Annotated[
        str | None, typer.Option(metavar="ID", help="Licence of the data set, as cc-by-4.0; else that of its clips.")
    ] = None,
    allow_license: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="A licence of clips that lets you publish them; `none`: those without."),
    ] = None,
    retag: Retag = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be uploaded, and upload nothing.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Write what would be uploaded into a folder instead.")
    ] = None,
    as_json: Json = False,
    store: Annotated[Path, typer.Option("--store", metavar="DIR", help="The store's folder.")] = paths.STORE,
) -> None:
    """Publish a round: videos with prompts, scores and lineage, which `load_dataset` plays, a card and croissant.json.

    One commit has everything, then the tag rK names it. Published again, a round that is there costs nothing; a changed
    one becomes a new commit, and the tag moves only with --retag. Whatever stops it, the same command finishes it.
    What went up is read back and compared, and `bagger lineage` of a clip then tells where it is published.
    """
    from flows import publish as publishing

    if (repo is None) == (out is None):
        raise CommandError("say --repo ORG/NAME to publish, or --out DIR to write the files into a folder")
    private = None if public is None else not public
    request = publishing.Request(
        round, repo, private, where, include_seed, retag, license, tuple(allow_license or ()), store
    )
    if out is not None:
        if dry_run:
            raise CommandError("--out writes the files and uploads nothing; leave out --dry-run")
        result = publishing.to_folder(request, out)
        _tell(result, as_json)
        say(f"{out}: {len(result.new)} files written" if result.new else f"{out}: it is all there")
        return
    if dry_run:
        result = publishing.plan(request)
        _tell(result, as_json)
        size = sum(result.files[path] for path in result.new)
        say(f"{repo}: would upload {len(result.new)} of {len(result.files)} files, {size / 1e6:.1f} MB")
        return
    result = publishing.to_hub(request)
    _tell(result, as_json)
    assert result.where is not None
    _say_where(result.where, result.edited, str(repo), round)


def _tell(result: Result, as_json: bool) -> None:
    rows = [{"file": path, "bytes": size, "new": path in result.new} for path, size in result.files.items()]
    if as_json:
        print_json(rows)
    elif result.files:
        print_table(rows, ["file", "bytes", "new"], "no files")


def _say_where(where: Published, edited: bool, repo: str, tag: str) -> None:
    if edited:
        say(f"{repo}: its README.md was edited there; the text stays, only the list of rounds above it is new")
    say(f"{repo}: {'published' if where.made else 'was published already'} as {where.commit[:12]}")
    if where.tag != where.commit:
        say(f"{repo}: the tag {tag} stays at {where.tag[:12]}; --retag moves it here")


@app.command(
    "publish-model",
    epilog=f"""\b
Examples:
  bagger publish-model --round r2 --repo lab/model --dataset lab/clips
  python -c 'from diffusers import WanPipeline; WanPipeline.from_pretrained("lab/model", revision="r2")'

{TOKEN}""",
)
def publish_model(
    round: Round,
    repo: Repo = None,
    public: Public = None,
    dataset: Annotated[
        str | None, typer.Option(metavar="ORG/NAME", help="The data set of the clips it was trained on.")
    ] = None,
    license: Annotated[str | None, typer.Option(metavar="ID", help="Licence of the model, as apache-2.0.")] = None,
    retag: Retag = False,
    store: Annotated[Path, typer.Option("--store", metavar="DIR", help="The store's folder.")] = paths.STORE,
) -> None:
    """Publish a round's model: the pipeline folder, which `WanPipeline.from_pretrained` loads, and a card."""
    from flows import publish_model as publishing

    if repo is None:
        raise CommandError("say --repo ORG/NAME")
    private = None if public is None else not public
    result = publishing.to_hub(publishing.Request(round, repo, private, dataset, license, retag, store))
    assert result.where is not None
    _say_where(result.where, result.edited, repo, round)


@app.command(
    epilog=f"""\b
Examples:
  bagger fetch lab/clips --revision r2
  bagger clips --sort -drift --limit 5                       ask it
  dvc repro seed                                             your own seed clips, by the same base
  python -m flows.mix --round r2 && python -m flows.train --round r2      train on both

{TOKEN}"""
)
def fetch(
    repo: Annotated[str, typer.Argument(metavar="ORG/NAME", help="A data set that `bagger publish` made.")],
    revision: Annotated[str, typer.Option(metavar="REV", help="A tag (r2), branch or commit.")] = "main",
    round: Annotated[
        list[str] | None, typer.Option("--round", metavar="rK", help="Only this round; may be said again. Else all.")
    ] = None,
    store: Annotated[Path, typer.Option("--store", metavar="DIR", help="Where to: the store's folder.")] = paths.STORE,
) -> None:
    """Bring published rounds into a store: the same tables, ids and lineage as where they were made.

    Nothing that is here is replaced: a table of the same name with other rows is an error. Every file is checked
    against its digest, and every table too. Whatever stops it, the same command finishes it.
    """
    from flows.fetch import fetch as fetch_rounds

    found = fetch_rounds(repo, revision, tuple(round or ()), store)
    rows = [{"round": name, "clips": clips} for name, clips in found.rounds.items()]
    print_table(rows, ["round", "clips"])
    new = f"{len(found.tables)} tables written" if found.tables else "it was all here"
    say(f"{store}: {repo} at {found.commit[:12]}: {new}")

"""`dipnet corpus …` and `dipnet embed`: from images, wherever they lie, to vectors."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from flows import console
from flows.console import Encoder, Json
from models.plans import EmbedPlan, IngestPlan

corpus_app = typer.Typer(help="Corpora: named sets of images.", no_args_is_help=True)
embedding_app = typer.Typer()


@corpus_app.command("add")
def corpus_add(
    name: Annotated[str, typer.Argument(help="A new name, or that of a corpus to look through again.")],
    prefix: Annotated[
        str,
        typer.Argument(
            help="Folder or s3://bucket/prefix with images or tars of them; or a .tar; or a list: .csv, .parquet, .jsonl."
        ),
    ],
    split: Annotated[str, typer.Option(help="none, train, development or holdout.")] = "none",
    labels: Annotated[str, typer.Option(help="Column of the metadata with the class, or 'folder'.")] = "",
    metadata: Annotated[
        str, typer.Option(help="File about the images: .csv, .parquet, .jsonl, or COCO's .json (--labels category).")
    ] = "",
    boxes: Annotated[
        str,
        typer.Option(help="File of boxes, which become the elements: COCO's .json, or a table with x,y,width,height."),
    ] = "",
    as_json: Json = False,
) -> None:
    """List images, wherever they lie; what is there already is not added twice, and what is gone is chosen no more.

    A metadata.csv, .parquet or .jsonl under the prefix, with a column file_name, adds columns to filter on; or name the
    file. So do the other columns of a list, whose column uri (or url, path, image_path, file_name) names the images, and
    the .json, .txt and .cls beside an image in a tar. What of metadata, lists and tars cannot be used is counted. Of a
    list, its rows are what is there: images are not looked at, so a column etag says which have other bytes now.
    """
    from flows.control_plane import call
    from flows.corpus import ingest_corpus

    plan = IngestPlan(corpus=name, prefix=prefix, split=split, label_column=labels, metadata=metadata, boxes=boxes)
    console.show(call(ingest_corpus)(plan), as_json=as_json)


@corpus_app.command("list")
def corpus_list(as_json: Json = False) -> None:
    """Every corpus."""
    from tasks import views

    console.show(views.corpora_rows(), as_json=as_json, title="corpora")


@corpus_app.command("show")
def corpus_show(
    name: str,
    quarantine: Annotated[bool, typer.Option("--quarantine", help="List the unreadable images instead.")] = False,
    as_json: Json = False,
) -> None:
    """One corpus: images, vectors, columns, quarantine."""
    from tasks import views

    found: Any = views.quarantine_rows(name) if quarantine else views.corpus_record(name)
    console.show(found, as_json=as_json, title=f"quarantine of {name}" if quarantine else "")


@embedding_app.command()
def embed(
    corpora: Annotated[list[str], typer.Argument(help="Names of corpora.")],
    encoder: Encoder = "",
    batch_size: Annotated[int, typer.Option(help="Images that the encoder sees at once; 0: what suits it here.")] = 0,
    backend: Annotated[
        str, typer.Option(help="What the encoder runs on: auto, torch-fp32, torch-bf16, compile-bf16, onnx-int8, …")
    ] = "",
    retry: Annotated[
        bool,
        typer.Option(
            "--retry",
            help="Look again at what was unreadable. Mended files: first `corpus add`.",
        ),
    ] = False,
    runner: Annotated[str, typer.Option(help="local, or ray for a cluster (DIPNET_RAY_ADDRESS).")] = "",
    as_json: Json = False,
) -> None:
    """Turn images into vectors. Unreadable images are counted and set aside; shards that have vectors are skipped.

    It may be stopped at any instant and run again: what is complete is kept. Started twice, on this machine or another
    with the same PostgreSQL, both share the work. `dipnet doctor --encoder NAME` says how fast it should be, and
    `dipnet corpus show NAME --quarantine` what was unreadable, and why.

    On a Ray cluster of several machines the images, DIPNET_ROOT and the database must be within reach of all of them: S3
    or a folder that they share, and PostgreSQL.
    """
    from flows.control_plane import call
    from flows.corpus import embed_corpus

    plan = EmbedPlan(
        corpora=corpora, encoder=encoder, batch_size=batch_size, backend=backend, retry=retry, runner=runner
    )
    with console.progress():
        found = call(embed_corpus)(plan)
    if as_json:
        console.show(found, as_json=True)
        return
    for one in found:  # a table of them all would not fit a terminal
        console.show(one, as_json=False, title=f"embedded {one.corpus}")

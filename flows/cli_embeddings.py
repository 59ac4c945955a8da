"""`dipnet embeddings …`: vectors that were made elsewhere, and vectors for others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows import console
from flows.console import Encoder, Json
from models.plans import VectorsPlan

embeddings_app = typer.Typer(
    help="Vectors from elsewhere, and for others: clip-retrieval's layout, or npy and ids. `dipnet embed` makes them here.",
    no_args_is_help=True,
)

Corpus = Annotated[str, typer.Argument(help="Name of a corpus; see: dipnet corpus list")]


@embeddings_app.command("import")
def embeddings_import(
    corpus: Corpus,
    folder: Annotated[
        Path | None,
        typer.Argument(help="Folder of clip-retrieval's: img_emb/img_emb_N.npy and metadata/metadata_N.parquet."),
    ] = None,
    vectors: Annotated[Path | None, typer.Option(help="Instead of a folder: an .npy file, a row an image.")] = None,
    ids: Annotated[
        Path | None, typer.Option(help="With --vectors: .csv, .parquet or .txt that says what each row is about.")
    ] = None,
    encoder: Annotated[
        str, typer.Option(help="What made them: MODEL/PRETRAINED, a checkpoint's folder, or any name with --dim.")
    ] = "",
    dim: Annotated[int, typer.Option(help="Declare an encoder that cannot be loaded here: its dimension.")] = 0,
    weights_sha256: Annotated[str, typer.Option(help="Of the declared encoder's weights, where it is known.")] = "",
    preprocessing: Annotated[str, typer.Option(help="Of the declared encoder, in words.")] = "",
    as_json: Json = False,
) -> None:
    """Take vectors that exist already; no image is encoded again.

    Add the images first (dipnet corpus add). A row finds its image by sample_id, by uri, image_path, key, file_name, path
    or url (of two paths one may be the end of the other; a name that fits two images is left out), or by sha256. Images
    are read once, to hash and measure them. Vectors are brought to length 1 and kept as float16.

    An encoder that can be loaded here is tried on a few of the images, and must make the same. One that cannot is
    declared with --dim: then campaigns and searches start from images of the corpus, not from words or new images.
    """
    from tasks import importing_vectors

    plan = VectorsPlan(
        corpus=corpus,
        folder=str(folder or ""),
        vectors=str(vectors or ""),
        ids=str(ids or ""),
        encoder=encoder,
        dim=dim,
        weights_sha256=weights_sha256,
        preprocessing=preprocessing,
    )
    with console.progress():
        found = importing_vectors.import_vectors(plan)
    console.show(found, as_json=as_json)
    if found.shards_left and not as_json:
        rest = "import their vectors too" if found.declared else f"dipnet embed {corpus} --encoder {found.encoder}"
        console.headline(f"{found.shards_left} shards have no vectors of this encoder yet; next: {rest}")


@embeddings_app.command("export")
def embeddings_export(
    corpus: Corpus,
    folder: Annotated[Path, typer.Argument(help="A new or an empty folder, or one of an earlier export.")],
    encoder: Encoder = "",
    as_json: Json = False,
) -> None:
    """Write a corpus's vectors in clip-retrieval's layout, whole or not at all.

    img_emb/img_emb_N.npy holds float16 rows of length 1; metadata/metadata_N.parquet says of each where its image lies
    (image_path), its sample_id, and all that the manifest knows. `dipnet embeddings import` takes it back.
    """
    from tasks import exporting_vectors

    with console.progress():
        found = exporting_vectors.export_vectors(corpus, folder, encoder)
    console.show(found, as_json=as_json)


@embeddings_app.command("list")
def embeddings_list(as_json: Json = False) -> None:
    """Every set of vectors: corpus, encoder, how many, what made them."""
    from tasks import views

    console.show(views.embedding_rows(), as_json=as_json, title="embeddings")

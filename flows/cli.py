"""The `dipnet` command: the same functions as the flows, for people and for scripts."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from flows import console
from flows.cli_campaign import campaign_app
from flows.cli_champion import model_app
from flows.cli_corpus import corpus_app, embedding_app
from flows.cli_data import dataset_app, scenario_app
from flows.cli_embeddings import embeddings_app
from flows.cli_labels import labels_app
from flows.cli_models import learning_app
from flows.cli_predictions import predictions_app
from flows.cli_samples import issue_check, sample_app
from flows.console import Encoder, Json
from models.complaints import explain
from models.errors import DipnetError
from models.plans import DiscoverPlan

HELP = """Turn a handful of a model's failures into a labelled, retrained, measured improvement.

Start with `dipnet demo`. With your own data, in this order:

 1. dipnet corpus add … · dipnet embed …      images become vectors
 2. dipnet train … · dipnet evaluate …        a baseline, and where it fails
 3. dipnet issue new … · dipnet issue add …   name a failure and show it
 4. dipnet campaign run …                     find more of the same, and send it to be labelled
 5. dipnet labels sync · dipnet train …       take the labels back, retrain, and see what it gained

Everything lives under DIPNET_ROOT (default: ./dipnet-data); `dipnet doctor` says whether all is well.
"""

app = typer.Typer(help=HELP, no_args_is_help=True, rich_markup_mode="markdown", pretty_exceptions_enable=False)
issue_app = typer.Typer(help="Issues: named failures, shown by exemplars.", no_args_is_help=True)
for name, group in (
    ("corpus", corpus_app),
    ("embeddings", embeddings_app),
    ("issue", issue_app),
    ("campaign", campaign_app),
    ("labels", labels_app),
    ("predictions", predictions_app),
    ("model", model_app),
    ("sample", sample_app),
    ("dataset", dataset_app),
    ("scenario", scenario_app),
):
    app.add_typer(group, name=name)
app.add_typer(embedding_app)
app.add_typer(learning_app)
issue_app.command("check")(issue_check)


def main() -> None:
    """Run the command; an error of ours is one line and an exit code (2 input, 3 incompatible, 4 corrupt, 5 unavailable)."""
    # An error is told once, by us; what is served logs to the Prefect UI.
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "INFO" if "serve" in sys.argv[1:2] else "CRITICAL")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    try:
        app()
    except DipnetError as error:
        console.complain(str(error), code=error.exit_code)
        sys.exit(error.exit_code)
    except ValidationError as error:
        console.complain(f"{explain(error)}; see --help", code=2)
        sys.exit(2)


@app.command()
def index(
    corpora: Annotated[list[str], typer.Argument(help="Names of embedded corpora.")],
    encoder: Encoder = "",
    as_json: Json = False,
) -> None:
    """Index corpora for quick search, and measure its recall against the exact scan. Worth it from a million images on."""
    from tasks import indexing

    with console.progress():
        found = indexing.build_index(corpora, encoder)
    console.show(found, as_json=as_json)


@app.command()
def search(
    corpus: Annotated[str, typer.Argument(help="Name of an embedded corpus.")],
    text: Annotated[str, typer.Option(help="What to look for, in words.")] = "",
    image: Annotated[
        Path | None, typer.Option(help="What to look for, as an image file; a part of one: FILE#xywh=x,y,width,height.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, max=10_000, help="How many to show.")] = 20,
    encoder: Encoder = "",
    exact: Annotated[bool, typer.Option("--exact", help="Scan everything, even where there is an index.")] = False,
    as_json: Json = False,
) -> None:
    """The images of a corpus most like a text or an image."""
    from tasks import searching

    found = searching.search(corpus, image=image, text=text, encoder_name=encoder, top=top, exact=exact)
    console.show(found, as_json=as_json, title=f"most like {text or image}")


@issue_app.command("new")
def issue_new(
    name: Annotated[str, typer.Argument(help="A name such as white-shiba.")],
    class_name: Annotated[str, typer.Option("--class", help="The class that the model gets wrong.")],
    where: Annotated[str, typer.Option(help="SQL over metadata columns that delimits the issue's slice.")] = "",
    describe: Annotated[str, typer.Option(help="What goes wrong, in a sentence, for annotators.")] = "",
    as_json: Json = False,
) -> None:
    """Name a failure."""
    from tasks import searching

    console.show(searching.new_issue(name, class_name=class_name, where=where, description=describe), as_json=as_json)


@issue_app.command("add")
def issue_add(
    name: str,
    images: Annotated[
        list[Path], typer.Argument(help="Image files that show the issue; of a part: FILE#xywh=x,y,width,height.")
    ],
    negative: Annotated[bool, typer.Option("--negative", help="They show what the issue is not.")] = False,
    as_json: Json = False,
) -> None:
    """Add exemplars; the issue's version moves."""
    from tasks import searching

    console.show(searching.add_exemplars(name, images, positive=not negative), as_json=as_json)


@issue_app.command("list")
def issue_list(as_json: Json = False) -> None:
    """Every issue and its state."""
    from tasks import views

    console.show(views.issue_rows(), as_json=as_json, title="issues")


@issue_app.command("show")
def issue_show(name: str, as_json: Json = False) -> None:
    """One issue and its exemplars."""
    from tasks import views

    console.show(views.issue_record(name), as_json=as_json)


@issue_app.command("discover")
def issue_discover(
    model: Annotated[str, typer.Argument(help="A model version that fails.")],
    scenario: Annotated[str, typer.Option(help="Scenario on development data.")],
    exemplars: Annotated[int, typer.Option(help="Failures to keep as exemplars.")] = 10,
    encoder: Encoder = "",
    as_json: Json = False,
) -> None:
    """Open an issue from the clearest cluster of a model's failures on development data."""
    from flows.control_plane import call
    from flows.discovery import discover_failures

    plan = DiscoverPlan(model=model, scenario=scenario, exemplars=exemplars, encoder=encoder)
    console.show(call(discover_failures)(plan), as_json=as_json)


@app.command()
def serve(
    port: Annotated[int, typer.Option(help="Port of the Prefect server, where none is configured.")] = 4200,
) -> None:
    """Serve every flow as a deployment, so that campaigns can be launched from the Prefect UI's forms.

    Where PREFECT_API_URL names a server, its UI shows them; otherwise one is started on loopback.
    """
    from flows.serving import serve_all

    serve_all(port=port)


@app.command()
def receiver(
    host: Annotated[str, typer.Option(help="Address to listen on; loopback, unless told otherwise.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port to listen on; 0 takes any free one.")] = 8137,
) -> None:
    """Show images to annotators where they lie, and hear from Label Studio that something was answered.

    Nothing is copied: batches carry signed links to here, each good for one image and for DIPNET_MEDIA_DAYS. Without a
    receiver Label Studio must serve the files itself (DIPNET_LABEL_STUDIO_FILES_ROOT), and answers are polled alone.

     1. DIPNET_RECEIVER_SECRET: what `openssl rand -hex 32` prints, the same here and for every other dipnet
     2. DIPNET_RECEIVER_URL: where annotators' browsers and Label Studio reach this, for every dipnet that sends batches
     3. `dipnet receiver`, beside `dipnet serve`; `dipnet doctor` says whether it is reached

    Browsers elsewhere need --host, or better a proxy with TLS that leads here: a link is readable on its way.
    """
    from flows.receiving import serve_receiver

    serve_receiver(host=host, port=port)


@app.command()
def demo(
    folder: Annotated[Path | None, typer.Option(help="Where everything goes; default: ./dipnet-demo.")] = None,
    label_studio: Annotated[
        bool,
        typer.Option("--label-studio", help="Have the batches answered in a real Label Studio, started for the demo."),
    ] = False,
    label_studio_url: Annotated[
        str, typer.Option(help="Use this Label Studio (token: DIPNET_LABEL_STUDIO_TOKEN).")
    ] = "",
    budget: Annotated[int, typer.Option(min=1, help="Label requests of each arm.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything that is chance.")] = 0,
    as_json: Json = False,
) -> None:
    """The whole loop on real images, in about a minute: a failure found, mined, labelled, retrained and measured."""
    from flows.demo import Demo, run_demo

    through_studio = label_studio or bool(label_studio_url)
    home = folder or Path("dipnet-demo-label-studio" if through_studio else "dipnet-demo")
    run_demo(Demo(home.absolute(), budget, seed, through_studio, label_studio_url), as_json=as_json)


@app.command()
def doctor(
    encoder: Annotated[
        str,
        typer.Option(
            help="Load this encoder too (default: the one of DIPNET_ENCODER), and measure what to expect of it."
        ),
    ] = "",
    settings: Annotated[bool, typer.Option("--settings", help="List every setting instead.")] = False,
    as_json: Json = False,
) -> None:
    """Whether settings, database, object store, Prefect, Label Studio and receiver are well, and what to do if not."""
    from tasks import checking

    if settings:
        console.show(checking.settings_rows(), as_json=as_json, title="settings")
        return
    rows = checking.checks(encoder)
    if rows[-1]["check"] == "encoder" and rows[-1]["ok"]:
        _measured(rows, encoder, as_json=as_json)
    else:
        console.show(rows, as_json=as_json, title="dipnet doctor")
    if any(row["ok"] is False for row in rows):
        sys.exit(1)


def _measured(rows: list[dict[str, Any]], encoder: str, *, as_json: bool) -> None:
    """The checks, and how fast embedding with an encoder should be here."""
    from tasks import machine

    if not as_json:
        console.show(rows, as_json=False, title="dipnet doctor")
        console.headline("measuring the encoder: some minutes, best with nothing else running …")
    found = machine.measure(encoder)
    if as_json:
        console.show({"checks": rows, "machine": found}, as_json=True)
        return
    told = f"{found['encoder']} on {found['device']}, {found['cores']} cores"
    console.show(found["backends"], as_json=False, title=f"backends: {told}")
    console.show(found["decoding"], as_json=False, title="reading and decoding")
    console.show(found["expect"], as_json=False, title="what to expect of embedding")

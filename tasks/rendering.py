"""How a report comes about: templates that escape everything, thumbnails inside the page, files put in place whole."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from models.corpus import Sample
from models.errors import DipnetError
from storage.objects import ObjectStore
from storage.stores import Stores
from tasks import charts, elements
from tasks.compute import images

THUMBNAIL_PIXELS = 96


def render(template: str, **values: Any) -> str:
    """A template of ours with these values. Class names, paths and reasons are text, whatever they hold."""
    environment = Environment(
        loader=PackageLoader("tasks"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(**values)


def write(target: ObjectStore, folder: str, html: str, record: Mapping[str, Any]) -> list[str]:
    """Put report.html and report.json in place, each whole, the JSON last, since it says that all is done; their places."""
    target.write(f"{folder}report.html", html.encode())
    target.write(f"{folder}report.json", (json.dumps(record, indent=2, sort_keys=True) + "\n").encode())
    return [target.uri(f"{folder}report.html"), target.uri(f"{folder}report.json")]


def picture(drawn: tuple[charts.Draw, tuple[float, float]], label: str) -> Markup:
    """A drawing as an <svg> element, which has escaped its own texts."""
    return Markup(charts.svg(*drawn, label=label))  # noqa: S704


def by_seed(uplift: Mapping[str, Any]) -> Markup:
    """What either arm of an uplift reaches with each training seed."""
    metric = f"{uplift['metric']} {uplift['class_name']}".strip()
    label = (
        f"uplift of {uplift['campaign']} over {uplift['control']} by training seed: {metric} on {uplift['scenario']}"
    )
    return picture(charts.by_seed(uplift["by_seed"], uplift["seeds"], metric), label)


def thumbnail(stores: Stores, sample: Sample | None) -> str:
    """A small PNG as a data URI, made anew from the pixels; empty when the image is gone or broken."""
    if sample is None:
        return ""
    try:
        image = elements.image_of(stores, sample.uri)
    except (images.Unreadable, DipnetError):
        return ""
    image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    sink = io.BytesIO()
    image.save(sink, format="PNG")
    return data_uri(sink.getvalue())


def data_uri(data: bytes) -> str:
    """PNG inside a page."""
    return "data:image/png;base64," + base64.b64encode(data).decode()

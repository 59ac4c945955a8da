"""Pictures say what they are given, whatever classes are called, and the same twice."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks import charts

HOSTILE = ["<script>alert(1)</script>", "$x_{", "\"quoted\" & 'so'", "外套", "two\nlines", "long " * 50, ""]


def bars() -> list[charts.Panel]:
    rows = [charts.Bar(name, 0.1 * place - 0.3, -0.4, 0.5, place % 2 == 0) for place, name in enumerate(HOSTILE)]
    return [charts.Panel("F1", rows), charts.Panel("recall", rows)]


def test_hostile_class_names_are_text_in_every_picture() -> None:
    table = np.arange(49).reshape(7, 7) - 20
    pictures = [
        charts.svg(*charts.forest(bars()), label='x" onload="alert(1)'),
        charts.svg(*charts.confusion(table, HOSTILE, difference=True), label="<b>"),
        charts.svg(
            *charts.calibration([(HOSTILE[0], [{"samples": 3, "confidence": 0.7, "accuracy": 0.5}])]), label="c"
        ),
        charts.svg(*charts.by_seed([{"control": 0.5, "campaign": 0.6}] * 5, range(5), HOSTILE[0]), label="s"),
    ]
    for text in pictures:
        assert "<script" not in text and 'onload="' not in text
        assert text.startswith("<svg ") and text.rstrip().endswith("</svg>")
        assert "currentColor" in text and charts.INK not in text
    assert "&lt;script&gt;" in pictures[0] and "$x_{" in pictures[0] and "外套" in pictures[0]
    assert "long long long long l…" in pictures[0]


def test_the_same_picture_has_the_same_bytes() -> None:
    first, second = (charts.svg(*charts.forest(bars()), label="x") for _ in range(2))
    assert first == second
    assert charts.png(*charts.forest(bars())) == charts.png(*charts.forest(bars()))


def test_a_difference_is_coloured_only_where_it_is_sure() -> None:
    def colours(*found: charts.Bar) -> set[str]:
        text = charts.svg(*charts.forest([charts.Panel("F1", found)]), label="x")
        return {colour for colour in (charts.GOOD, charts.BAD, charts.GREY) if colour in text}

    assert colours(charts.Bar("a", 0.2, 0.1, 0.3, True)) == {charts.GOOD}
    assert colours(charts.Bar("a", -0.2, -0.3, -0.1, True)) == {charts.BAD}
    assert colours(charts.Bar("a", 0.2, 0.1, 0.3, False)) == {charts.GREY}


def test_a_png_is_a_picture_small_enough_for_an_address() -> None:
    data = charts.png(*charts.forest(bars()))
    assert len(data) < 60_000
    assert Image.open(io.BytesIO(data)).size[0] > 300


@pytest.mark.skipif(os.name != "posix", reason="there is no /proc")
def test_nothing_is_drawn_at_import_and_no_home_is_needed(tmp_path: Path) -> None:
    code = "import sys; from tasks import charts; assert 'matplotlib' not in sys.modules; "
    code += "print(len(charts.png(*charts.by_seed([{'control': .1, 'campaign': .2}], [0], 'f1'))))"
    own = {**os.environ, "HOME": "/proc/nowhere", "XDG_CONFIG_HOME": "/proc/x", "XDG_CACHE_HOME": "/proc/x"}
    own |= {"TMPDIR": str(tmp_path)}
    own.pop("MPLCONFIGDIR", None)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=own, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 1_000

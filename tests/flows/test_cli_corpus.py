"""Corpora as people type them: lists, tars and boxes, and what is told of them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.flows.test_cli import dipnet

Draw = Callable[..., Path]


def test_a_corpus_of_boxes_from_a_list_tells_what_it_could_not_use(
    draw: Draw, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = draw("x", 4)
    (folder / "list.csv").write_text("uri,site\n0000.png,north\n0001.png,south\n0002.png,south\n0002.png,north\n")
    boxes = [{"file_name": f"000{number}.png", "bbox": [1, 1, 9, 9], "category_name": "bar"} for number in (0, 0, 1)]
    (folder / "boxes.json").write_text(json.dumps([*boxes, {**boxes[0], "bbox": [2.5, 2, 8, 8]}]))

    def run(*words: object) -> dict[str, object]:
        code, out, err = dipnet(monkeypatch, capsys, *words, "--json")
        assert code == 0, err
        found: dict[str, object] = json.loads(out)
        return found

    added = run("corpus", "add", "x", folder / "list.csv", "--boxes", folder / "boxes.json")
    assert (added["images"], added["new_shards"], added["vanished"]) == (3, 1, 0)
    assert added["findings"] == {
        "places named twice (the first is used)": 1,
        "boxes given twice (the first is used)": 1,
        "images without a box": 1,
    }
    shown = run("corpus", "show", "x")
    assert shown["prefix"] == str(folder / "list.csv")
    assert {"site", "box_x", "category", "width", "height", "taken_at"} < set(shown["columns"])  # type: ignore[call-overload]
    (folder / "list.csv").write_text("uri,site\n0000.png,north\n")
    assert run("corpus", "add", "x", folder / "list.csv", "--boxes", folder / "boxes.json")["vanished"] == 1
    assert run("corpus", "show", "x")["vanished"] == 1
    code, _, err = dipnet(monkeypatch, capsys, "corpus", "add", "x", folder / "list.csv")
    assert (code, "are boxes; give them with --boxes FILE" in err) == (2, True)

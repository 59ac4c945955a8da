"""`dipnet dataset` and `dipnet scenario` from a folder of images to an export, as people type them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.flows.test_cli import dipnet

Draw = Callable[..., Path]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.setenv("COLUMNS", "300")
    return lambda *words: dipnet(monkeypatch, capsys, *words)


def test_data_is_frozen_shown_exported_and_compared(run: Run, draw: Draw, tmp_path: Path) -> None:
    for seed, (name, split) in enumerate((("train", "train"), ("held", "holdout"))):
        assert run("corpus", "add", name, draw(name, 12, seed=seed), "--split", split, "--labels", "class_name")[0] == 0
    assert run("embed", "train", "held")[0] == 0

    code, out, _ = run("dataset", "freeze", "--json")
    assert (code, json.loads(out)["splits"]) == (0, {"train": 12, "holdout": 12})
    assert "12 train, 12 holdout" in run("dataset", "list")[1]
    assert run("dataset", "show", 1)[0] == 0
    code, out, _ = run("dataset", "export", 1, tmp_path / "out", "--format", "csv", "--images", "link", "--hide-labels")
    assert (code, (tmp_path / "out" / "samples.csv").is_file()) == (0, True)
    assert json.loads(run("dataset", "diff", 1, 1, "--json")[1]) == {
        "added": [], "removed": [], "relabelled": [], "moved": [],
    }  # fmt: skip
    assert run("dataset", "diff", 1, 1)[0] == 0
    code, _, err = run("dataset", "show", 9)
    assert (code, "there is no dataset version 9; see: dipnet dataset list" in err) == (2, True)
    code, _, err = run("dataset", "freeze", "--holdout", "0.6", "--development", "0.5")
    assert (code, "leave nothing to train on" in err) == (2, True)

    new = ("scenario", "new", "light", "--corpus", "held", "--where", "tone = 'light'")
    code, out, _ = run(*new, "--regression", "--json")
    assert (code, json.loads(out)["kind"], json.loads(out)["samples"]) == (0, "regression", 6)
    code, _, err = run(*new)
    assert (code, "choose another name" in err) == (2, True)
    assert run("scenario", "new", "none")[0] == 2
    assert "light@1" in run("scenario", "list")[1]
    assert json.loads(run("scenario", "show", "light@1", "--json")[1])["where"] == "tone = 'light'"
    assert json.loads(run("scenario", "grow", "light", "--json")[1])["added"] == 0
    code, _, err = run("scenario", "show", "dark")
    assert (code, "freeze one with: dipnet scenario new" in err) == (2, True)


def test_coco_comes_in_by_its_file(run: Run, draw: Draw, tmp_path: Path) -> None:
    folder = draw("x", 4)
    about = {
        "images": [{"id": n, "file_name": f"{n:04d}.png"} for n in range(4)],
        "annotations": [{"image_id": n, "category_id": n % 2} for n in range(3)],
        "categories": [{"id": 0, "name": "square"}, {"id": 1, "name": "bar"}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(about))
    words = ("corpus", "add", "x", folder, "--split", "train", "--labels", "category")
    code, out, _ = run(*words, "--metadata", tmp_path / "coco.json", "--json")
    assert (code, json.loads(out)["findings"]) == (0, {"images without a category": 1})
    code, _, err = run("corpus", "add", "y", folder, "--metadata", tmp_path / "nowhere.json")
    assert (code, "does not exist" in err) == (2, True)

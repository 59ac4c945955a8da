"""What the command says, and where."""

import json

import pytest

from flows import console


def test_what_libraries_print_meanwhile_is_not_in_the_output(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress():
        print("(raylet) a worker died")
    console.show({"shards": 3}, as_json=True)
    out, err = capsys.readouterr()
    assert json.loads(out) == {"shards": 3}
    assert "(raylet) a worker died" in err

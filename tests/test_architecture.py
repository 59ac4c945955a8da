"""The arrows of the house: imports point right, never left."""

import ast
from pathlib import Path

import models

ROOT = Path(__file__).parent.parent
HOUSE = ("flows", "tasks", "models", "storage", "deploy")
MAY_IMPORT = {
    "models": set(),
    "storage": {"models"},
    "tasks": {"storage", "models"},
    "tasks/compute": set(),
    "flows": {"tasks", "storage", "models"},
    "deploy": {"tasks", "storage", "models"},
}
NEVER = {
    "models": {"prefect", "torch", "numpy", "boto3", "pyarrow"},
    "storage": {"prefect", "torch", "sklearn", "scipy", "faiss"},
    "tasks/compute": {"prefect", "sqlmodel", "sqlalchemy", "boto3", "pyarrow", "httpx"},
    "tasks": {"boto3", "label_studio_sdk"},
}


def room_of(file: Path) -> str:
    relative = file.relative_to(ROOT).as_posix()
    return "tasks/compute" if relative.startswith("tasks/compute/") else relative.split("/")[0]


def imported_by(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file} imports relatively; write the full name"
            names.add(node.module or "")
    return names


def source_files() -> list[Path]:
    return [file for room in HOUSE for file in sorted((ROOT / room).rglob("*.py"))]


def test_imports_point_right() -> None:
    wrong = []
    for file in source_files():
        room = room_of(file)
        for name in imported_by(file):
            top = name.split(".")[0]
            if top not in HOUSE:
                continue
            inside = name.startswith("tasks.compute") if room == "tasks/compute" else top == room
            if not inside and top not in MAY_IMPORT[room]:
                wrong.append(f"{file.relative_to(ROOT)} imports {name}")
    assert len(source_files()) > 40
    assert not wrong


def test_each_room_keeps_out_what_is_not_its_business() -> None:
    wrong = [
        f"{file.relative_to(ROOT)} imports {name}"
        for file in source_files()
        for name in imported_by(file)
        if name.split(".")[0] in NEVER.get(room_of(file), set())
    ]
    assert not wrong


def test_models_are_ours() -> None:
    assert Path(str(models.__file__)).parent == ROOT / "models"


def test_nothing_is_unpickled() -> None:
    text = "\n".join(file.read_text() for file in source_files())
    assert "pickle.load" not in text
    assert "allow_pickle=True" not in text


def test_tests_have_no_package_files() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))

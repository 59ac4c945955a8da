"""stub"""

from typing import Any


def check_issue(name: str, encoder: str) -> dict[str, Any]:
    return {}

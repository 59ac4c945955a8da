"""Settings are validated loudly and keep their secrets."""

from pathlib import Path

import pytest

from models.errors import BadSettings
from models.plans import SelectionPolicy
from models.settings import load_settings


def test_a_misspelt_setting_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIPNET_SHARD_SZIE", "5")
    with pytest.raises(BadSettings, match="DIPNET_SHARD_SZIE"):
        load_settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SHARD_SIZE", "0"),
        ("DEVICE", "tpu"),
        ("LABEL_STUDIO_URL", "labels.example"),
        ("ROOT", " "),
        ("MAX_PIXELS", "many"),
        ("RETRAIN_CRON", "at three"),
        ("RETRAIN_CRON", "0 3 * *"),
    ],
)
def test_a_wrong_value_names_its_setting(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"DIPNET_{name}", value)
    with pytest.raises(BadSettings, match=f"DIPNET_{name}"):
        load_settings()


def test_a_token_is_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIPNET_LABEL_STUDIO_TOKEN", "s3cr3t-token")
    settings = load_settings()
    assert "s3cr3t-token" not in f"{settings!r} {settings} {settings.model_dump()}"
    assert settings.label_studio_token.get_secret_value() == "s3cr3t-token"


def test_sqlite_lies_in_the_root_unless_a_url_says_otherwise(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().resolved_database_url == f"sqlite:///{house / 'dipnet.db'}"
    monkeypatch.setenv("DIPNET_DATABASE_URL", "postgresql://me@host/db")
    assert load_settings().resolved_database_url == "postgresql+psycopg://me@host/db"


def test_a_policy_knows_its_ranges() -> None:
    with pytest.raises(ValueError, match="budget"):
        SelectionPolicy(budget=0)

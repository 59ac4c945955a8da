"""Everything that is decided outside the code, read once from DIPNET_* variables or a .env file."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from models.complaints import explain
from models.errors import BadSettings

PREFIX = "DIPNET_"
LEAST_SECRET = 32


class Settings(BaseSettings):
    """Where data lives, which encoder is the default, who labels. Secrets are never printed."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_file=".env", extra="ignore", frozen=True)

    root: str = Field(
        "dipnet-data",
        description="where manifests, vectors, models and reports live: a directory or s3://bucket/prefix",
    )
    database_url: str = Field(
        "", description="SQLAlchemy URL; empty: SQLite in the root (or in ./dipnet.db when the root is S3)"
    )
    s3_endpoint: str = Field("", description="endpoint of an S3-compatible server; empty: AWS")
    s3_region: str = Field("us-east-1", description="region that requests to S3 are signed for")
    cache_bytes: int = Field(
        20_000_000_000,
        ge=0,
        description="local room for vectors and indexes of an S3 root; least recently used go first",
    )
    encoder: str = Field(
        "ViT-B-32/laion2b_s34b_b79k",
        description="MODEL/PRETRAINED of open_clip, the folder of a local checkpoint, or torchvision/MODEL/WEIGHTS",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where encoders run")
    shard_size: int = Field(10_000, ge=1, le=1_000_000, description="images in a shard at most")
    max_pixels: int = Field(100_000_000, ge=1, description="an image with more pixels is quarantined, not decoded")
    max_image_bytes: int = Field(200_000_000, ge=1, description="an image of more bytes is quarantined, not read")
    image_seconds: float = Field(30.0, gt=0.0, description="an image that takes longer to decode is quarantined")
    decoders: int = Field(0, ge=0, le=1024, description="processes that read and decode images; 0: one a core")
    backend: str = Field(
        "auto",
        description="what encoders run on: auto for the fastest that was measured on this machine, or torch-fp32, "
        "torch-bf16, torch-fp16, compile-fp32, compile-bf16, onnx-fp32, onnx-int8",
    )
    runner: Literal["local", "ray"] = Field("local", description="where shards are embedded")
    ray_address: str = Field("", description="address of a Ray cluster; empty: one is started on this machine")
    ray_embedders: int = Field(0, ge=0, le=1024, description="encoders of a Ray run; 0: one a GPU, or one a machine")
    labeler: Literal["oracle", "label-studio"] = Field("label-studio", description="who answers label requests")
    oracle_truth: Path | None = Field(
        None, description="CSV with columns sample_id,class_name that the oracle answers from"
    )
    label_studio_url: str = Field("", description="base URL of a Label Studio server")
    label_studio_token: SecretStr = Field(SecretStr(""), description="legacy or personal access token")
    label_studio_files_root: Path | None = Field(
        None,
        description="folder that Label Studio serves as local files, where `dipnet receiver` does not serve images",
    )
    receiver_url: str = Field(
        "", description="where annotators' browsers and Label Studio reach `dipnet receiver`; empty: there is none"
    )
    receiver_secret: SecretStr = Field(
        SecretStr(""), description="what links to images and webhooks are signed with: 32 characters or more, by chance"
    )
    retrain_cron: str = Field(
        "0 3 * * *", description="when `dipnet serve` retrains, as minute hour day month weekday in UTC; empty: never"
    )
    media_days: float = Field(
        30.0, gt=0.0, le=3650.0, description="how long a link to an image is good; what waits longer gets a new one"
    )

    @field_validator("root")
    @classmethod
    def _root_is_usable(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("must not be empty")
        return value.rstrip("/") if len(value) > 1 else value

    @field_validator("label_studio_url", "s3_endpoint", "receiver_url")
    @classmethod
    def _is_http_url(cls, value: str) -> str:
        if value and not value.startswith(("http://", "https://")):
            raise ValueError("must start with http:// or https://")
        return value.rstrip("/")

    @field_validator("retrain_cron")
    @classmethod
    def _is_a_cron_line(cls, value: str) -> str:
        fields = value.split()
        if fields and (len(fields) != 5 or not all(re.fullmatch(r"[0-9A-Za-z*/,#?-]+", field) for field in fields)):
            raise ValueError("must be five fields (minute hour day month weekday), such as 0 3 * * *, or empty")
        return " ".join(fields)

    @field_validator("receiver_secret")
    @classmethod
    def _is_long_enough(cls, value: SecretStr) -> SecretStr:
        if value and len(value.get_secret_value()) < LEAST_SECRET:
            raise ValueError(f"must have {LEAST_SECRET} characters or more; make one with: openssl rand -hex 32")
        return value

    @property
    def resolved_database_url(self) -> str:
        """The URL in use: the one given (psycopg 3 for PostgreSQL), or a SQLite file beside the data."""
        if self.database_url:
            for scheme in ("postgres://", "postgresql://"):
                if self.database_url.startswith(scheme):
                    return "postgresql+psycopg://" + self.database_url.removeprefix(scheme)
            return self.database_url
        folder = Path() if self.root.startswith("s3://") else Path(self.root)
        return f"sqlite:///{(folder / 'dipnet.db').absolute()}"


def load_settings(**overrides: object) -> Settings:
    """Settings from the environment and `overrides`. Raises BadSettings, naming each wrong variable."""
    known = {f"{PREFIX}{name}".upper() for name in Settings.model_fields}
    unknown = sorted(key for key in os.environ if key.upper().startswith(PREFIX) and key.upper() not in known)
    if unknown:
        raise BadSettings(
            f"unknown setting {', '.join(unknown)}; see `dipnet doctor --settings` for the names there are"
        )
    try:
        return Settings(**overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        wrong = explain(error, prefix=PREFIX)
        raise BadSettings(f"wrong setting: {wrong}; mend the variable or the line in .env") from None

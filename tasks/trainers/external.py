"""Trainer `external`."""

from tasks.trainers.protocol import Trainer

TRAINER: Trainer = None  # type: ignore

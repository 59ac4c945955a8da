"""Every trainer by its name: a new one is a module here with a TRAINER, and a name of TrainerPlan."""

from __future__ import annotations

from importlib import import_module

from models.errors import Incompatible
from tasks.trainers.protocol import Trainer

TRAINERS = ("head", "finetune", "external")


def trainer_of(name: str) -> Trainer:
    """The trainer of that name, loaded when it is asked for. Raises Incompatible for models that were made elsewhere."""
    if name not in TRAINERS:
        raise Incompatible(
            f"a model of trainer '{name}' cannot answer by itself; give its predictions with: "
            "dipnet predictions import FILE --model NAME --scenario SCENARIO"
        )
    found: Trainer = import_module(f"tasks.trainers.{name}").TRAINER
    return found

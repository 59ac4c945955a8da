"""Every trainer by its name: a new one is added here, and as a name of TrainerPlan."""

from __future__ import annotations

from models.errors import Incompatible
from tasks.trainers import external, finetune, head
from tasks.trainers.protocol import Trainer

TRAINERS: dict[str, Trainer] = {"head": head.TRAINER, "finetune": finetune.TRAINER, "external": external.TRAINER}


def trainer_of(name: str) -> Trainer:
    """The trainer of that name. Raises Incompatible for models that were made elsewhere."""
    if name not in TRAINERS:
        raise Incompatible(
            f"a model of trainer '{name}' cannot answer by itself; give its predictions with: "
            "dipnet predictions import FILE --model NAME --scenario SCENARIO"
        )
    return TRAINERS[name]

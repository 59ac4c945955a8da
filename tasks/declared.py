"""Which encoder made vectors that came from elsewhere: one that can be loaded here, or one that is only declared."""

from __future__ import annotations

import hashlib

from models.corpus import DECLARED
from models.errors import BadInput, Incompatible
from models.plans import VectorsPlan
from models.settings import Settings
from tasks.compute.encoder import Encoder, Spec
from tasks.encoders import load_encoder


def spec_of(plan: VectorsPlan, settings: Settings, *, dim: int, said: Spec | None) -> tuple[Spec, Encoder | None]:
    """What made vectors of so many dimensions, and the encoder itself where it can be loaded.

    `said` is what a folder that dipnet exported says of itself. Raises BadInput for an encoder that makes others, or that
    can neither be loaded nor is declared; Incompatible where other weights go by the same name here.
    """
    name = plan.encoder or (said.name if said else "")
    if not name:
        raise BadInput("nothing says what made the vectors; name it with: --encoder NAME")
    if plan.dim and plan.dim != dim:
        raise BadInput(f"the vectors have {dim} dimensions, not {plan.dim}; correct --dim, or name another file")
    told = said if said and said.name == name else None
    if plan.weights_sha256 or plan.preprocessing or (told and told.preprocessing.startswith(DECLARED)):
        return told or _declared(plan, name, dim), None
    try:
        network = load_encoder(name, settings.device)
    except BadInput as problem:
        if not told and not plan.dim:
            raise BadInput(
                f"{problem}. To take the vectors all the same, declare what made them: --dim {dim}"
            ) from None
        return told or _declared(plan, name, dim), None
    if network.spec.dim != dim:
        raise BadInput(
            f"encoder '{name}' makes vectors of {network.spec.dim} dimensions, and these have {dim}; name what made them"
        )
    if told and told.key != network.spec.key:
        raise Incompatible(
            f"the vectors were exported from other weights than those that are '{name}' here; give these weights another "
            f"name: --encoder NAME --dim {dim}"
        )
    return network.spec, network


def _declared(plan: VectorsPlan, name: str, dim: int) -> Spec:
    """Without a hash of its weights, its name stands for them: other names never meet."""
    weights = plan.weights_sha256 or hashlib.sha256(f"declared {name}".encode()).hexdigest()
    return Spec(name, dim, weights, DECLARED + (plan.preprocessing or "not said"))

"""Classifier heads at rest: safetensors, checked when they are read."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load as from_safetensors
from safetensors.numpy import save as to_safetensors

from models.errors import Incompatible
from models.learning import ModelVersion
from storage.objects import verified
from storage.stores import Stores
from tasks.compute import classifier, perceptron
from tasks.compute.classifier import Head
from tasks.compute.perceptron import Perceptron

LINEAR = {"weights", "bias"}
LAYERED = {"hidden", "hidden_bias", "weights", "bias"}


def load(stores: Stores, model: ModelVersion) -> Head | Perceptron:
    """A model version's head. Raises CorruptData when it is not what was written, Incompatible when it has none."""
    names: set[str] = set()
    if model.weights_key:
        tensors = from_safetensors(verified(stores.objects, model.weights_key, model.weights_sha256))
        names = set(tensors)
    if names == LINEAR:
        return Head(tensors["weights"], tensors["bias"])
    if names == LAYERED:
        return Perceptron(*(tensors[name] for name in Perceptron._fields))
    raise Incompatible(
        f"model '{model.reference}' does not work on an encoder's vectors; name one that was fitted with trainer head"
    )


def probabilities(head: Head | Perceptron, features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Class probabilities (n, classes) of features (n, dim)."""
    if isinstance(head, Perceptron):
        return perceptron.probabilities(head, features)
    return classifier.probabilities(head, features)


def to_bytes(head: Head | Perceptron) -> bytes:
    """The head as safetensors."""
    return bytes(to_safetensors(head._asdict()))

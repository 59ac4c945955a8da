"""Classifier heads at rest: safetensors, checked when they are read."""

from __future__ import annotations

from safetensors.numpy import load as from_safetensors
from safetensors.numpy import save as to_safetensors

from models.learning import ModelVersion
from storage.objects import verified
from storage.stores import Stores
from tasks.compute.classifier import Head


def load(stores: Stores, model: ModelVersion) -> Head:
    """A model version's head. Raises CorruptData when it is not what was written."""
    tensors = from_safetensors(verified(stores.objects, model.weights_key, model.weights_sha256))
    return Head(tensors["weights"], tensors["bias"])


def to_bytes(head: Head) -> bytes:
    """The head as safetensors."""
    return bytes(to_safetensors({"weights": head.weights, "bias": head.bias}))

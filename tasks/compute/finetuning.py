"""Training a network on images, epoch by epoch, so that a run that was cut off goes on as if it had not been."""

from __future__ import annotations

import hashlib
import io
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tasks.compute.augmentation import varied
from tasks.compute.classifier import class_weights
from tasks.compute.network import normalised, quiet_torch

DIGEST = 64


class Rows(NamedTuple):
    """Images and what they show."""

    images: NDArray[np.uint8]  # (n, 3, H, W)
    targets: NDArray[np.int64]  # (n,)


class Recipe(NamedTuple):
    """How to train."""

    classes: int
    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    balance: str
    augmentation: str
    patience: int
    minutes: float
    seed: int


class Broken(Exception):
    """A checkpoint that is not what was written, or of another training."""


def seed_of(*parts: object) -> int:
    """A seed that follows from its parts alone."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8]) >> 1


def batches(order: torch.Tensor, size: int) -> list[torch.Tensor]:
    """Nearly equal parts of about that size, none of a single row: batch normalisation cannot learn from one."""
    count = math.ceil(len(order) / size)
    if count > 1 and len(order) / count < 2:
        count = max(1, len(order) // size)
    return list(torch.tensor_split(order, count))


class Training:
    """A network in training. What it does depends on its weights, the recipe and the number of the epoch alone."""

    def __init__(self, network: nn.Module, train: Rows, watched: Rows | None, recipe: Recipe, *, device: str) -> None:
        self._network: nn.Module = network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._train, self._watched, self._recipe, self._device = train, watched, recipe, device
        self.steps = len(batches(torch.arange(len(train.targets)), recipe.batch_size))
        self._optimizer = torch.optim.AdamW(
            network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimizer, max_lr=recipe.learning_rate, total_steps=recipe.epochs * self.steps + 1
        )
        half = device == "cuda"
        self._dtype = torch.bfloat16 if half and torch.cuda.is_bf16_supported() else torch.float16 if half else None
        self._scaler = torch.amp.GradScaler(device, enabled=self._dtype is torch.float16)
        weights = class_weights(train.targets, classes=recipe.classes)
        self._weights = torch.from_numpy(weights).float()
        self.history: list[dict[str, Any]] = []
        self._best: dict[str, torch.Tensor] = {}

    @property
    def best_epoch(self) -> int:
        """The epoch with the lowest development loss, 1, 2, …; the last one where nothing is watched."""
        losses = [row.get("development_loss", math.inf) for row in self.history]
        best = min(losses, default=math.inf)
        return losses.index(best) + 1 if math.isfinite(best) else len(self.history)

    @property
    def ended(self) -> str:
        """Why training is over; empty while it is not."""
        done, recipe = len(self.history), self._recipe
        if done >= recipe.epochs:
            return "all epochs done"
        if self._watched is not None and recipe.patience and done - self.best_epoch >= recipe.patience:
            return f"no lower development loss for {recipe.patience} epochs"
        if recipe.minutes and sum(row["seconds"] for row in self.history) >= 60 * recipe.minutes:
            return f"{recipe.minutes:g} minutes are over"
        return ""

    def run_epoch(self, stepped: Callable[[int], None]) -> None:
        """One pass over the training data, then the development loss."""
        number, started = len(self.history) + 1, time.monotonic()
        with quiet_torch(self._device):
            torch.manual_seed(seed_of(self._recipe.seed, number))
            loss = self._pass(stepped)
            row = {"epoch": number, "loss": loss, "learning_rate": self._schedule.get_last_lr()[0]}
            if self._watched is not None:
                row |= self._watch(self._watched)
        self.history.append({**row, "seconds": round(time.monotonic() - started, 3)})
        if self._watched is not None and self.best_epoch == number:
            self._best = {name: part.detach().cpu().clone() for name, part in self._network.state_dict().items()}

    def finish(self) -> nn.Module:
        """The network of the best epoch."""
        if self._best:
            self._network.load_state_dict(self._best)
        self._network.eval()
        return self._network

    def checkpoint(self) -> bytes:
        """All that the next epoch depends on, after a hash of it."""
        sink = io.BytesIO()
        parts = {
            "network": self._network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "scaler": self._scaler.state_dict(),
            "history": self.history,
            "best": self._best,
        }
        torch.save(parts, sink)
        data = sink.getvalue()
        return hashlib.sha256(data).hexdigest().encode() + data

    def resume(self, checkpoint: bytes) -> None:
        """Go on after a checkpoint of the same training. Raises Broken, before anything has changed."""
        data = checkpoint[DIGEST:]
        if hashlib.sha256(data).hexdigest().encode() != checkpoint[:DIGEST]:
            raise Broken("its checksum differs")
        found = torch.load(io.BytesIO(data), map_location=self._device, weights_only=True)
        ours = {name: part.shape for name, part in self._network.state_dict().items()}
        if {name: part.shape for name, part in found["network"].items()} != ours:
            raise Broken("it is of another network")
        self._network.load_state_dict(found["network"])
        self._optimizer.load_state_dict(found["optimizer"])
        self._schedule.load_state_dict(found["schedule"])
        self._scaler.load_state_dict(found["scaler"])
        self.history, self._best = found["history"], {name: part.cpu() for name, part in found["best"].items()}

    def _order(self) -> torch.Tensor:
        """The rows of this epoch; with balanced sampling, rows of rare classes come more often."""
        count = len(self._train.targets)
        if self._recipe.balance != "sampling":
            return torch.randperm(count)
        chances = self._weights[torch.from_numpy(self._train.targets)]
        return torch.multinomial(chances, count, replacement=True)

    def _pass(self, stepped: Callable[[int], None]) -> float:
        self._network.train()
        total = 0.0
        order = self._order()
        for rows in batches(order, self._recipe.batch_size):
            places = rows.numpy()
            images = torch.from_numpy(self._train.images[places]).to(self._device, non_blocking=True)
            targets = torch.from_numpy(self._train.targets[places]).to(self._device, non_blocking=True)
            self._optimizer.zero_grad(set_to_none=True)
            with torch.autocast(self._device, dtype=self._dtype, enabled=self._dtype is not None):
                logits = self._network(normalised(varied(images, self._recipe.augmentation)))
            loss = self._loss(logits.float(), targets)
            self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            self._scaler.step(self._optimizer)
            self._scaler.update()
            self._schedule.step()
            total += float(loss.detach()) * len(places)
            stepped(1)
        if not math.isfinite(total):
            raise FloatingPointError(f"the loss is {total} in epoch {len(self.history) + 1}")
        return total / len(order)

    def _loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        weights = self._weights.to(logits.device) if self._recipe.balance == "class-weights" else None
        return nn.functional.cross_entropy(logits, targets, weight=weights)

    def _watch(self, rows: Rows) -> dict[str, float]:
        """Loss and accuracy on the development data."""
        self._network.eval()
        total, right, batch = 0.0, 0, 4 * self._recipe.batch_size
        with torch.inference_mode():
            for start in range(0, len(rows.targets), batch):
                images = torch.from_numpy(np.ascontiguousarray(rows.images[start : start + batch])).to(self._device)
                targets = torch.from_numpy(rows.targets[start : start + batch]).to(self._device)
                logits = self._network(normalised(images)).float()
                total += float(nn.functional.cross_entropy(logits, targets, reduction="sum"))
                right += int((logits.argmax(dim=1) == targets).sum())
        return {"development_loss": total / len(rows.targets), "development_accuracy": right / len(rows.targets)}

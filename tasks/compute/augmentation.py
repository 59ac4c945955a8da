"""How training images are varied, one by one, drawn by torch's random state."""

from __future__ import annotations

import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

SHARE = 8  # a shift of an eighth of the side at most
TOGETHER = 4  # images that one draw of a strong variation is for: a draw an image is several times slower


def varied(images: torch.Tensor, kind: str) -> torch.Tensor:
    """uint8 images (n, 3, H, W) after `none`; `light`: mirrored and shifted; `strong`: also TrivialAugment and erasing.

    Mirrors and shifts are drawn for each image, TrivialAugment (Müller and Hutter 2021) for four at a time.
    """
    if kind == "none":
        return images
    moved = _shifted(_mirrored(images))
    if kind == "light":
        return moved
    strong = v2.Compose([v2.TrivialAugmentWide(), v2.RandomErasing(p=0.25)])
    return torch.cat([strong(part) for part in torch.split(moved, TOGETHER)])


def _mirrored(images: torch.Tensor) -> torch.Tensor:
    chosen = (torch.rand(len(images)) < 0.5).to(images.device).view(-1, 1, 1, 1)
    return torch.where(chosen, functional.horizontal_flip(images), images)


def _shifted(images: torch.Tensor) -> torch.Tensor:
    """Each image shifted by up to an eighth of its side; edges are repeated."""
    side = images.shape[-1]
    most = max(1, side // SHARE)
    shifts = torch.randint(-most, most + 1, (2, len(images), 1))
    places = (torch.arange(side).view(1, 1, -1) + shifts).clamp(0, side - 1).to(images.device)  # (2, n, side)
    numbers = torch.arange(len(images), device=images.device).view(-1, 1, 1)
    rows, columns = places[0].unsqueeze(2), places[1].unsqueeze(1)
    return images.permute(0, 2, 3, 1)[numbers, rows, columns].permute(0, 3, 1, 2)

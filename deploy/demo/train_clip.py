"""Train the demo's CLIP from scratch on Fashion-MNIST, and save it so that open_clip's factory loads it offline.

    uv run python -m deploy.demo.train_clip

Trained on training images 0 to 39,999, watched on 40,000 to 44,999; 45,000 to 59,999 are the demo's own data and are
never seen here. The 10,000 test images are looked at once, after the weights are saved as float16 and loaded again.

Each image is matched against the captions of ten classes, and against the thirty of class and tone, in one template a
step; and each caption against the images of the batch that it is true of (all of them: many images share a caption).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file
from torch.nn import functional

from deploy.demo import fashion

FOLDER = Path(__file__).parent / "clip"
TRAINED_ON, WATCHED_ON = slice(0, 40_000), slice(40_000, 45_000)
MEAN, STD = 0.286, 0.353  # of Fashion-MNIST's training pixels

MODEL = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 28, "patch_size": 4, "layers": 4, "width": 128, "head_width": 32},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
PREPROCESSING = {"mean": [MEAN] * 3, "std": [STD] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}


def main() -> None:
    """Train, save, measure."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--source", type=Path, default=fashion.SOURCE, help="folder of the idx files")
    options.add_argument("--out", type=Path, default=FOLDER, help="folder for the checkpoint")
    options.add_argument("--epochs", type=int, default=10)
    options.add_argument("--seed", type=int, default=0)
    chosen = options.parse_args()

    torch.manual_seed(chosen.seed)
    data = fashion.read("train", source=chosen.source)
    write_config(chosen.out)
    model = build(chosen.out)
    started = time.monotonic()
    train(model, data, epochs=chosen.epochs, seed=chosen.seed)
    save(model, chosen.out)
    minutes = (time.monotonic() - started) / 60
    print(f"trained in {minutes:.1f} minutes")
    print(
        f"zero-shot accuracy on the test images: {zero_shot(chosen.out, fashion.read('t10k', source=chosen.source)):.4f}"
    )


def write_config(folder: Path) -> None:
    """The configuration that open_clip's factory reads from a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"model_cfg": MODEL, "preprocess_cfg": PREPROCESSING}, indent=2)
    (folder / "open_clip_config.json").write_text(text + "\n")


def build(folder: Path) -> Any:
    """The untrained model, from the same configuration."""
    return open_clip.CLIP(**json.loads((folder / "open_clip_config.json").read_text())["model_cfg"])


def train(model: Any, data: fashion.Fashion, *, epochs: int, seed: int, batch: int = 256) -> None:
    """AdamW with a warm-up and a cosine; prints the zero-shot accuracy on the watched images after every epoch."""
    pixels, tones = as_pixels(data.images), torch.from_numpy(fashion.tones(data.images))
    classes = torch.from_numpy(data.classes)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05, betas=(0.9, 0.98))
    per_epoch = (TRAINED_ON.stop - TRAINED_ON.start) // batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1.5e-3, total_steps=epochs * per_epoch, pct_start=0.1)
    generator = np.random.default_rng(seed)
    for epoch in range(epochs):
        started, order = time.monotonic(), generator.permutation(np.arange(TRAINED_ON.start, TRAINED_ON.stop))
        model.train()
        for step in range(per_epoch):
            rows = torch.from_numpy(order[step * batch : (step + 1) * batch])
            images = augment(pixels[rows], generator)
            found = loss(model, images, classes[rows], tones[rows], generator)
            optimiser.zero_grad()
            torch.autograd.backward(found)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0, 3.4)  # a temperature above 1/30 keeps the classes from collapsing to points
        watched = accuracy(model, pixels[WATCHED_ON], classes[WATCHED_ON])
        print(
            f"epoch {epoch + 1}: loss {found.item():.3f}, watched {watched:.4f}, {time.monotonic() - started:.0f} s",
            flush=True,
        )


def loss(
    model: Any, images: torch.Tensor, classes: torch.Tensor, tones: torch.Tensor, generator: np.random.Generator
) -> torch.Tensor:
    """Symmetric contrastive loss with every true pair as a positive, at the level of classes and of class and tone."""
    plain, toned = fashion.captions(fashion.TEMPLATES[generator.integers(len(fashion.TEMPLATES))])
    texts = model.encode_text(open_clip.tokenize(plain + toned, context_length=16), normalize=True)
    logits = model.logit_scale.exp() * model.encode_image(images, normalize=True) @ texts.T
    total: torch.Tensor = logits.new_zeros(())
    for level, target in ((logits[:, :10], classes), (logits[:, 10:], classes * len(fashion.TONES) + tones)):
        total = total + functional.cross_entropy(level, target, label_smoothing=0.05)
        true = functional.one_hot(target, level.shape[1]).float()
        there = true.sum(0) > 0
        spread = (true / true.sum(0).clamp(min=1)).T[there]
        total = total + 0.5 * functional.cross_entropy(level.T[there], spread)
    return total


def augment(images: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
    """Mirror half of the images and shift all by up to two pixels; (n, 3, 28, 28)."""
    mirrored = torch.from_numpy(generator.random(len(images)) < 0.5)
    images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    dx, dy = generator.integers(-2, 3, size=2)
    padded = functional.pad(images, (2, 2, 2, 2), value=-MEAN / STD)
    return padded[:, :, 2 + dy : 30 + dy, 2 + dx : 30 + dx]


def as_pixels(images: np.ndarray[Any, np.dtype[np.uint8]]) -> torch.Tensor:
    """What open_clip's transform makes of these images: RGB, scaled and normalised, (n, 3, 28, 28)."""
    grey = (torch.from_numpy(images.copy()).float() / 255 - MEAN) / STD
    return grey[:, None].expand(-1, 3, -1, -1)


@torch.inference_mode()
def accuracy(model: Any, pixels: torch.Tensor, classes: torch.Tensor) -> float:
    """Zero-shot accuracy with the mean of all templates' captions."""
    model.eval()
    bank = torch.stack(
        [
            model.encode_text(open_clip.tokenize(fashion.captions(t)[0], context_length=16), normalize=True)
            for t in fashion.TEMPLATES
        ]
    ).mean(0)
    hits = [(model.encode_image(part, normalize=True) @ bank.T).argmax(1) for part in torch.split(pixels, 1000)]
    return float((torch.cat(hits) == classes).float().mean())


def save(model: Any, folder: Path) -> None:
    """Weights as float16 safetensors."""
    halved = {name: tensor.detach().half().contiguous() for name, tensor in model.state_dict().items()}
    save_file(halved, folder / "open_clip_model.safetensors")


def zero_shot(folder: Path, data: fashion.Fashion) -> float:
    """Accuracy of what is saved, loaded as anybody loads it."""
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder.absolute()}", precision="fp32")
    return accuracy(model, as_pixels(data.images), torch.from_numpy(data.classes))


if __name__ == "__main__":
    main()

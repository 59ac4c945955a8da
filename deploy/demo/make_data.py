"""Draw the demo's images from Fashion-MNIST, with a blind spot in the labelled set.

    uv run python -m deploy.demo.make_data

Training images 45,000 to 59,999, which the demo's CLIP never saw, are dealt into four splits as they come. Then garments
of the BLIND kind (a class in a tone) are taken out of the labelled set, and thinned in the pool to what a rare kind is:
the way a team's labelled set misses what its first collection site did not have. Development and holdout stay as they
are, so both show the blind spot at its natural rate. RARE garments of the class in other tones stay in the labelled set.
"""

from __future__ import annotations

import argparse
import hashlib
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from deploy.demo import fashion

OUT = Path(__file__).parent / "data" / "fashion.parquet"
RESERVED = range(45_000, 60_000)
DEALT = {"labelled": 1_800, "pool": 6_000, "development": 1_500, "holdout": 2_500}  # before the blind spot is cut
BLIND = ("coat", "light")
KEPT_OF_CLASS = 40  # coats in other tones that stay in the labelled set
BLIND_SHARE, OTHER_SHARE = 0.03, 0.01  # of the pool: light coats, and coats in other tones


def main() -> None:
    """Draw and write."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--source", type=Path, default=fashion.SOURCE, help="folder of the idx files")
    options.add_argument("--out", type=Path, default=OUT, help="Parquet file to write")
    options.add_argument("--seed", type=int, default=0)
    chosen = options.parse_args()
    table = as_table(fashion.read("train", source=chosen.source), seed=chosen.seed)
    pq.write_table(table, chosen.out, compression="zstd")
    for split in DEALT:
        print(split, sum(name == split for name in table.column("split").to_pylist()))


def as_table(data: fashion.Fashion, *, seed: int) -> pa.Table:
    """A row an image: name, split, class_name, tone, source_index, png."""
    tones = fashion.tones(data.images)
    places, splits = deal(data, tones, seed=seed)
    images = [as_png(data.images[place]) for place in places]
    return pa.table(
        {
            "name": [f"{place:05d}" for place in places.tolist()],
            "split": splits,
            "class_name": [fashion.CLASS_NAMES[c] for c in data.classes[places].tolist()],
            "tone": [fashion.TONES[t] for t in tones[places].tolist()],
            "source_index": pa.array(places, pa.int32()),
            "png": pa.array(images, pa.binary()),
        }
    )


def deal(data: fashion.Fashion, tones: NDArray[np.int64], *, seed: int) -> tuple[NDArray[np.int64], list[str]]:
    """Places (n,) in the source and the split of each, in the order of the splits and then of the source."""
    generator = np.random.default_rng(seed)
    order = generator.permutation(distinct(data.images, np.asarray(RESERVED)))
    of_class = data.classes == fashion.CLASS_NAMES.index(BLIND[0])
    blind = of_class & (tones == fashion.TONES.index(BLIND[1]))
    places: list[NDArray[np.int64]] = []
    splits: list[str] = []
    for split, count in DEALT.items():
        dealt, order = order[:count], order[count:]
        if split == "labelled":
            dealt = thin(dealt, blind, 0)
            dealt = thin(dealt, of_class, KEPT_OF_CLASS)
        if split == "pool":
            rest = int((~of_class[dealt]).sum())
            dealt = thin(dealt, blind, round(rest * BLIND_SHARE))
            dealt = thin(dealt, of_class & ~blind, round(rest * OTHER_SHARE))
        places.append(np.sort(dealt))
        splits += [split] * len(dealt)
    return np.concatenate(places), splits


def thin(places: NDArray[np.int64], of_kind: NDArray[np.bool_], keep: int) -> NDArray[np.int64]:
    """The places without those of a kind beyond the first `keep`."""
    return places[~of_kind[places] | (np.cumsum(of_kind[places]) <= keep)]


def distinct(images: NDArray[np.uint8], places: NDArray[np.int64]) -> NDArray[np.int64]:
    """The places whose image occurs for the first time."""
    seen: dict[str, int] = {}
    for place in places.tolist():
        seen.setdefault(hashlib.sha256(images[place].tobytes()).hexdigest(), place)
    return np.asarray(sorted(seen.values()), dtype=np.int64)


def as_png(image: NDArray[np.uint8]) -> bytes:
    """A greyscale PNG of one image (28, 28)."""
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, format="PNG", optimize=True)
    return sink.getvalue()


if __name__ == "__main__":
    main()

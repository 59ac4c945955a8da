"""How an encoder keeps a machine busy: a thread a core on a CPU, a queue of batches on a GPU."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from tasks.compute.cores import cores

Run = Callable[[NDArray[np.uint8]], NDArray[np.float32]]  # (n, H, W, 3) -> unit (n, dim)
QUEUED = 8  # batches of a GPU in one call: the first is staged while it idles


@lru_cache(maxsize=1)
def workers() -> ThreadPoolExecutor:
    """A thread a core, in each of which torch uses that core alone.

    Threads that share every layer wait for the slowest after each one; where decoders use the same cores, that is
    often. Threads with images of their own wait for nobody.
    """
    before, count = torch.get_num_threads(), cores()
    ready = threading.Barrier(count + 1)

    def begin() -> None:
        torch.set_num_threads(1)
        ready.wait()

    pool = ThreadPoolExecutor(count, thread_name_prefix="encoder")
    for _ in range(count):
        pool.submit(begin)
    ready.wait()
    torch.set_num_threads(before)  # torch keeps the last word for threads that begin later
    return pool


def on_every_core(encode: Run, *, piece: int, always: bool = False) -> Run:
    """Each core takes `piece` images at a time. With `always` it is never fewer: what is missing is filled and cut off."""

    def one(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return encode(filled(pixels, piece))[: len(pixels)] if always else encode(pixels)

    def run(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.concatenate(list(workers().map(one, (pixels[i : i + piece] for i in range(0, len(pixels), piece)))))

    return run


def filled(pixels: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    """Exactly `count` images, black ones last."""
    if len(pixels) == count:
        return pixels
    return np.concatenate([pixels, np.zeros((count - len(pixels), *pixels.shape[1:]), np.uint8)])


def on_cuda(module: Callable[[torch.Tensor], torch.Tensor], *, batch: int) -> Run:
    """Batches of one size, bytes staged in pinned memory while the GPU is at work on those before; one wait a call."""
    held: list[torch.Tensor] = []

    def run(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        if not held:
            held.extend(torch.empty((batch, *pixels.shape[1:]), dtype=torch.uint8).pin_memory() for _ in range(2))
        free = [torch.cuda.Event() for _ in held]  # type: ignore[no-untyped-call]
        found = []
        with torch.inference_mode():
            for number, start in enumerate(range(0, len(pixels), batch)):
                part, turn = torch.from_numpy(pixels[start : start + batch]), number % len(held)
                free[turn].synchronize()  # an event that was never recorded is no wait
                held[turn][: len(part)].copy_(part)
                on_device = held[turn].to("cuda", non_blocking=True)
                free[turn].record()
                found.append(module(on_device)[: len(part)].clone())  # a CUDA graph writes over its last result
            vectors: NDArray[np.float32] = torch.cat(found).cpu().numpy()
        return vectors

    return run

"""Framing as open_clip and torchvision do it, from all of an image: what ours is compared with."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import InterpolationMode, functional

from tasks.compute.frame import Frame


def framed(image: Image.Image, frame: Frame) -> NDArray[np.uint8]:
    """An RGB image in a frame (H, W, 3), resized from its full size as open_clip and torchvision do it."""
    mode = InterpolationMode(frame.interpolation)
    size, (height, width) = [frame.height, frame.width], (image.height, image.width)
    if frame.fit == "squash":
        return np.array(functional.resize(image, size, mode))
    if frame.fit == "crop" and frame.height == frame.width:
        resized = functional.resize(image, [frame.resize or frame.height], mode)
        return np.array(functional.center_crop(resized, size))
    ratios = (height / frame.height, width / frame.width)
    ratio = max(ratios) if frame.fit == "pad" else min(ratios)
    resized = functional.resize(image, [round(height / ratio), round(width / ratio)], mode)
    if frame.fit == "crop":
        return np.array(functional.center_crop(resized, size))
    canvas = Image.new("RGB", (frame.width, frame.height), frame.fill)
    canvas.paste(resized, ((frame.width - resized.width) // 2, (frame.height - resized.height) // 2))
    return np.array(canvas)

"""The bar of the demo's CLIP, on all 10,000 test images."""

from collections.abc import Callable

import pytest

from deploy.demo import fashion, train_clip

needs_data_set = pytest.mark.skipif(not fashion.SOURCE.is_dir(), reason="install Debian's dataset-fashion-mnist")


@needs_data_set
def test_zero_shot_accuracy_on_all_test_images_meets_the_bar(record_property: Callable[[str, object], None]) -> None:
    accuracy = train_clip.zero_shot(train_clip.FOLDER, fashion.read("t10k"))
    record_property("zero_shot_accuracy", accuracy)
    print(f"zero-shot accuracy on Fashion-MNIST's 10,000 test images: {accuracy:.4f}")
    assert accuracy >= 0.80

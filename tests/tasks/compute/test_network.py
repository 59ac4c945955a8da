"""torchvision's classifiers, whatever they are called; images, varied one by one; parts of nearly equal size."""

import pytest
import torch

from tasks.compute import augmentation, finetuning, network
from tasks.compute.network import NetworkError


@pytest.mark.parametrize(
    ("backbone", "size"),
    [
        ("resnet18", 16),
        ("mobilenet_v3_small", 32),
        ("efficientnet_b0", 32),
        ("squeezenet1_1", 32),
        ("googlenet", 64),
    ],
)
def test_a_backbone_of_any_name_gets_a_head_and_takes_its_weights_back(backbone: str, size: int) -> None:
    shape = network.shape_of(backbone, classes=3, image_size=size, weights=None)
    torch.manual_seed(0)
    net = network.build(shape)
    again = network.with_weights(shape, network.read_state(network.to_bytes(net)))
    images = torch.randint(0, 256, (5, 3, size, size), dtype=torch.uint8).numpy()
    first, second = (network.probabilities(one, images, device="cpu") for one in (net, again.network))
    assert again.notes == []
    assert first.shape == (5, 3)
    assert first.tobytes() == second.tobytes()


def test_small_images_get_a_stem_that_sees_every_pixel_and_large_ones_do_not() -> None:
    small = network.shape_of("resnet18", classes=2, image_size=32, weights=None)
    assert small.small_stem
    assert network.build(small).conv1.stride == (1, 1)  # type: ignore[union-attr]
    assert not network.shape_of("resnet18", classes=2, image_size=96, weights=None).small_stem
    assert not network.shape_of("vit_b_16", classes=2, image_size=32, weights=None).small_stem


def test_what_torchvision_does_not_have_is_told_with_the_nearest() -> None:
    with pytest.raises(NetworkError, match="did you mean resnet50"):
        network.require_backbone("ResNet50")
    with pytest.raises(NetworkError, match="no classifier '__import__'"):
        network.require_backbone("__import__")


@pytest.mark.parametrize("kind", ["none", "light", "strong"])
def test_images_are_varied_by_the_random_state_alone(kind: str) -> None:
    images = torch.randint(0, 256, (9, 3, 16, 16), dtype=torch.uint8)
    torch.manual_seed(1)
    first = augmentation.varied(images, kind)
    torch.manual_seed(1)
    assert torch.equal(first, augmentation.varied(images, kind))
    assert (first.shape, first.dtype) == (images.shape, torch.uint8)
    assert torch.equal(first, images) == (kind == "none")


def test_light_variations_are_drawn_for_each_image() -> None:
    images = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8).repeat(64, 1, 1, 1)
    torch.manual_seed(0)
    assert len(torch.unique(augmentation.varied(images, "light"), dim=0)) > 20


@pytest.mark.parametrize(("rows", "size"), [(3, 2), (5, 2), (64, 64), (65, 64), (127, 64), (2, 64), (1_000, 7)])
def test_no_part_is_a_single_row_and_none_is_lost(rows: int, size: int) -> None:
    parts = finetuning.batches(torch.arange(rows), size)
    assert torch.cat(parts).tolist() == list(range(rows))
    assert all(2 <= len(part) <= 2 * size for part in parts)


def test_torch_is_left_as_it_was() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with network.quiet_torch("cpu"):
        torch.manual_seed(9)
        torch.rand(3)
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.equal(torch.rand(3), expected)

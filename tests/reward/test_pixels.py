import pytest
import torch

from themis_ray.reward import grid_stride, shrink, shrunk_sides


@pytest.mark.parametrize("shape", [(84, 84, 4), (96, 96, 3), (112, 112, 1), (7, 7, 3)])
def test_small_pictures_are_not_touched(shape: tuple[int, int, int]) -> None:
    pixels = torch.zeros(2, *shape, dtype=torch.uint8)
    assert shrink(pixels) is pixels
    assert shrunk_sides(*shape[:2]) == shape[:2]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_large_pictures_become_means_over_blocks(dtype: torch.dtype) -> None:
    pixels = torch.randint(0, 256, (2, 3, 113, 230, 2)).to(dtype)
    shrunk = shrink(pixels)
    assert shrunk.shape == (2, 3, *shrunk_sides(113, 230), 2) == (2, 3, 56, 76, 2)
    assert shrunk.dtype == torch.float32
    torch.testing.assert_close(shrunk[1, 2, 5, 7], pixels[1, 2, 10:12, 21:24].float().mean(dim=(0, 1)))


@pytest.mark.parametrize("side", [36, 112, 113, 224, 225, 1000, 4000])
def test_sides_stay_long_enough_for_the_convolutions_and_at_most_112(side: int) -> None:
    shrunk, _ = shrunk_sides(side, side)
    assert min(side, 56) <= shrunk <= 112
    assert shrunk * -(-side // 112) > 0.97 * side


def test_gradients_go_through() -> None:
    pixels = torch.rand(1, 224, 36, 1, requires_grad=True)
    shrink(pixels).sum().backward()
    assert pixels.grad is not None
    torch.testing.assert_close(pixels.grad, torch.full((1, 224, 36, 1), 0.5))


def test_only_large_grids_are_convolved_with_strides() -> None:
    assert [grid_stride(*sides) for sides in ((7, 7), (16, 16), (17, 5), (5, 100))] == [1, 1, 2, 2]

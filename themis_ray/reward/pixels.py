"""How large pictures are made small before they are convolved, so that networks stay as small as those for Atari."""

import torch
from torch import Tensor

# The Nature-DQN convolutions leave 10 x 10 positions of 112 x 112 pixels, 7 x 7 of the usual 84 x 84.
MAX_SIDE = 112
# Longer grids are convolved with stride 2 from the second layer on.
MAX_GRID_SIDE = 16


def grid_stride(height: int, width: int) -> int:
    """Returns the stride of the second and every later convolution of a grid."""
    return 1 if max(height, width) <= MAX_GRID_SIDE else 2


def shrunk_sides(height: int, width: int) -> tuple[int, int]:
    """Returns the height and width of what `shrink` makes of a picture."""
    return height // _block_side(height), width // _block_side(width)


def shrink(pixels: Tensor) -> Tensor:
    """Returns pictures with sides of at most 112, as means over equal blocks of pixels.

    What is small enough is returned as it is. Rows and columns at the end that do not fill a block, less than 1 %, are
    left out. Bytes are averaged without a copy of them as floats.

    Args:
        pixels: (*leading, H, W, C) of any type.
    """
    height, width = pixels.shape[-3:-1]
    block_height, block_width = _block_side(height), _block_side(width)
    if block_height == block_width == 1:
        return pixels
    rows, columns = shrunk_sides(height, width)
    kept = pixels[..., : rows * block_height, : columns * block_width, :]
    blocks = kept.reshape(*pixels.shape[:-3], rows, block_height, columns, block_width, pixels.shape[-1])
    means: Tensor = blocks.mean(dim=(-4, -2), dtype=torch.float32)
    return means


def _block_side(side: int) -> int:
    return -(-side // MAX_SIDE)

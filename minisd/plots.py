"""The book's visual language: colours, image grids, diagrams and animations."""

import torch
from PIL import Image
from torch import Tensor


def image_grid(
    images: Tensor, columns: int | None = None, scale: int = 2, gap: int = 2
) -> Image.Image:
    """Lay images (n,c,h,w) in [-1,1] out as one picture, row by row, as square as possible."""
    n, c, h, w = images.shape
    columns = columns or max(1, round(n**0.5))
    rows = -(-n // columns)
    cells = images.new_zeros((rows * columns, c, h, w))
    cells[:n] = images
    cells = torch.nn.functional.pad((cells.clamp(-1, 1) + 1) / 2, [gap, gap, gap, gap], value=0.5)
    sheet = cells.reshape(rows, columns, c, *cells.shape[2:]).permute(0, 3, 1, 4, 2)
    sheet = sheet.reshape(rows * cells.shape[2], columns * cells.shape[3], c)
    pixels = (sheet * 255).round().byte().cpu().numpy()
    picture = Image.fromarray(pixels.squeeze(-1) if c == 1 else pixels)
    return picture.resize((picture.width * scale, picture.height * scale), Image.NEAREST)

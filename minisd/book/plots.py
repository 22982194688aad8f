"""The book's visual language: fixed colours, image grids, curves, and animations.

Every figure of the book goes through this module, so that noise, words, latents and pixels look
the same on every page. Colour-blind readers can tell the colours apart, on white and on black.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler
from PIL import Image
from torch import Tensor

from minisd.files import replacing

NOISE, WORDS, LATENTS, PIXELS = "#B5478F", "#C26A00", "#0E8A6B", "#2F74C0"
INK, QUIET, PAPER = "#22262B", "#8A9099", "#FFFFFF"
SERIES = "#6F4E9B", "#9A7B00", "#C8384A"  # for curves that stand for none of these four
SHADES = "#DDA3C6", "#C968A2", NOISE  # from little noise to much

STYLE: dict[Any, Any] = {  # the type of matplotlib's keys is new in 3.10
    "axes.edgecolor": QUIET,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.prop_cycle": cycler(color=[*SERIES, INK, QUIET]),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "figure.constrained_layout.use": True,
    "figure.dpi": 100,
    "figure.facecolor": PAPER,
    "figure.figsize": (7.0, 3.0),
    "font.size": 10,
    "grid.color": "#E6E8EB",
    "image.cmap": "gray",
    "image.interpolation": "nearest",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "savefig.facecolor": PAPER,
}


def use_book_style() -> None:
    """Give matplotlib the book's colours, fonts and sizes, for the whole notebook."""
    plt.rcParams.update(STYLE)


def to_pixels(images: Tensor) -> Tensor:
    """Turn images (b,c,h,w) in [-1,1] into bytes (b,h,w,c); what lies outside is clipped."""
    pixels = (images.detach().float().clamp(-1, 1) + 1) * 127.5
    return pixels.round().byte().permute(0, 2, 3, 1).cpu()


def image_grid(
    images: Tensor, columns: int | None = None, scale: int = 2, gap: int = 2
) -> Image.Image:
    """Lay images (n,c,h,w) in [-1,1] out as one picture, row by row, as square as possible.

    `scale` enlarges without smoothing, `gap` is the grey margin around each image in its own
    pixels. Raises ValueError unless there is an image and it has 1 or 3 channels.
    """
    if images.ndim != 4 or len(images) < 1 or images.shape[1] not in (1, 3):
        raise ValueError(f"images must be (n, 1 or 3, h, w) with n >= 1, got {tuple(images.shape)}")
    n, c = images.shape[:2]
    columns = columns or max(1, round(n**0.5))
    empty = -n % columns  # grey cells that fill the last row
    cells = F.pad(to_pixels(images), [0, 0, gap, gap, gap, gap], value=200)
    cells = F.pad(cells, [0, 0, 0, 0, 0, 0, 0, empty], value=200)
    rows, h, w = len(cells) // columns, *cells.shape[1:3]
    sheet = cells.reshape(rows, columns, h, w, c).transpose(1, 2).reshape(rows * h, columns * w, c)
    picture = Image.fromarray(sheet.squeeze(-1).numpy() if c == 1 else sheet.numpy())
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def show_images(
    images: Tensor, titles: Sequence[str] = (), columns: int | None = None, size: float = 1.1
) -> Figure:
    """Draw images (n,c,h,w) in [-1,1] side by side with a title each, `size` inches wide."""
    columns = columns or len(images)
    rows = -(-len(images) // columns)
    titled = 0.28 if titles else 0.0
    figure, axes = plt.subplots(
        rows, columns, figsize=(columns * size, rows * (size + titled)), squeeze=False
    )
    for axis in axes.flat:
        axis.axis("off")
    for axis, pixels in zip(axes.flat, to_pixels(images), strict=False):
        axis.imshow(pixels.squeeze(-1), vmin=0, vmax=255)
    for axis, title in zip(axes.flat, titles, strict=False):
        axis.set_title(title, fontsize=9)
    return figure


def loss_curve(log: Sequence[dict[str, float]], axis: Axes, label: str = "") -> None:
    """Plot a training log (the rows of `training.json`): mean loss against the step."""
    axis.plot([row["step"] for row in log], [row["loss"] for row in log], label=label)
    axis.set(xlabel="optimiser step", ylabel="loss")


@dataclass(frozen=True)
class Animation:
    """Frames with a slider and a play button: plain HTML that works offline and in Colab.

    It opens on the frame `still`, which also stands in where no HTML is shown (PDF).
    """

    frames: Sequence[Image.Image]
    labels: Sequence[str]
    alt: str
    still: int = -1

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        return {
            "text/html": self.html(),
            "image/png": _base64_png(self.frames[self.still]),
            "text/plain": f"Animation of {len(self.frames)} frames: {self.alt}",
        }

    def html(self) -> str:
        """Return the player: one strip of all frames, of which a window shows one."""
        width, height, n = *self.frames[0].size, len(self.frames)
        still = range(n)[self.still]
        strip = Image.new(self.frames[0].mode, (width * n, height))
        for i, frame in enumerate(self.frames):
            strip.paste(frame, (i * width, 0))
        labels = [" ".join(label.split()) for label in self.labels]  # one line each
        lines = "\n".join(labels)
        show = (
            "var f=this.closest('figure'),i=+f.querySelector('input').value;"
            "f.querySelector('img').style.transform="
            f"'translateX('+(-100*i/{n})+'%)';"
            "f.querySelector('output').textContent=f.dataset.labels.split('\\n')[i];"
        )
        play = (
            "var f=this.closest('figure'),s=f.querySelector('input'),b=this;"
            "if(f.timer){clearInterval(f.timer);f.timer=null;b.textContent='Play';return}"
            f"if(+s.value==={n - 1})s.value=0;b.textContent='Pause';"
            "f.timer=setInterval(function(){s.value=+s.value+1;s.oninput();"
            f"if(+s.value==={n - 1}){{clearInterval(f.timer);f.timer=null;b.textContent='Play'}}"
            "},120)"
        )
        return (
            f'<figure class="minisd-player" data-labels="{escape(lines)}" '
            f'style="margin:1em auto;width:{width}px;max-width:100%">'
            f'<div style="overflow:hidden;background:#fff;border-radius:4px">'
            f'<img alt="{escape(self.alt)}" src="data:image/png;base64,{_base64_png(strip)}" '
            f'style="display:block;width:{n * 100}%;max-width:none;height:auto;margin:0;'
            f'transform:translateX(-{100 * still / n:.4f}%)"></div>'
            '<div style="display:flex;gap:.6em;align-items:center;margin-top:.4em">'
            f'<button type="button" onclick="{play}" style="min-width:4.5em">Play</button>'
            f'<input type="range" min="0" max="{n - 1}" value="{still}" oninput="{show}" '
            'aria-label="frame" style="flex:1;min-width:0">'
            f'<output style="min-width:5.5em">{escape(labels[still])}</output></div></figure>'
        )


def animate(
    frames: Sequence[Tensor], labels: Sequence[str], alt: str, still: int = -1, **grid: int
) -> Animation:
    """Make an animation of batches of images, each (n,c,h,w) in [-1,1], one grid a frame.

    `grid` goes to `image_grid`. Raises ValueError if frames and labels are not equally many.
    """
    if not frames or len(frames) != len(labels):
        raise ValueError(f"need as many labels as frames, got {len(labels)} and {len(frames)}")
    return Animation([image_grid(images, **grid) for images in frames], labels, alt, still)


def save_gif(path: str | Path, frames: Sequence[Image.Image], seconds: float = 3.0) -> None:
    """Write pictures as an animation that lasts `seconds` and holds its last frame as long."""
    durations = [round(1000 * seconds / len(frames))] * (len(frames) - 1)
    with replacing(path) as temporary:
        frames[0].save(
            temporary, save_all=True, append_images=frames[1:], loop=0,
            duration=[*durations, round(1000 * seconds)],
        )  # fmt: skip


def _base64_png(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "png", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()

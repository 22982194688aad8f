"""Chapter 3: diagrams of networks as SVG: the layers of a block, and the U of a U-Net."""

from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby
from typing import NamedTuple

from minisd.book.diagrams import SVG
from minisd.book.plots import INK, LATENTS, NOISE, PAPER, PIXELS, QUIET, WORDS
from minisd.unet import UNetConfig

PALE = "#F3F4F6"


def chain_diagram(
    boxes: Sequence[str],
    shapes: Sequence[str],
    title: str,
    jumps: Sequence[tuple[int, int, str]] = (),
    feeds: Mapping[int, str] | None = None,
) -> SVG:
    """Draw boxes in a row, joined by arrows, with a shape under each arrow (one more than boxes).

    A box "+" is a small circle; a line break in a label starts a line. A jump (i, j, label) is an
    arc from the arrow before box i to box j, `feeds` gives boxes a labelled arrow from below.
    Raises ValueError unless there is one shape more than there are boxes.
    """
    if len(shapes) != len(boxes) + 1:
        raise ValueError(f"need one shape more than boxes, got {len(shapes)} and {len(boxes)}")
    gaps = [max(26.0, 6.2 * len(shape) + 8) for shape in shapes]
    wide = [24 if b == "+" else 16 + 7.2 * max(map(len, b.split("\n"))) for b in boxes]
    middle = 30 + 34 * bool(jumps) + 16 * max(b.count("\n") for b in boxes) / 2
    height = 2 * middle - 34 * bool(jumps) + 34 * bool(feeds)
    x, starts, parts = 4.0, [], []
    for i, shape in enumerate(shapes):
        starts.append(x)
        parts.append(_tipped(f"M{x:g} {middle:g}H{x + gaps[i] - 2:g}"))
        parts.append(_text(x + gaps[i] / 2 - 2, middle + 15, shape, QUIET, 10.5))
        x += gaps[i]
        if i < len(boxes):
            lines, half = boxes[i].split("\n"), wide[i] / 2
            tall, round_ = (24, 12) if boxes[i] == "+" else (14 + 16 * len(lines), 5)
            parts.append(
                f'<rect x="{x:g}" y="{middle - tall / 2:g}" width="{wide[i]:g}" height="{tall}" '
                f'rx="{round_}" fill="{PALE}" stroke="{INK}"/>'
            )
            for n, line in enumerate(lines):
                y = middle + 4.5 + 16 * (n - (len(lines) - 1) / 2)
                parts.append(_text(x + half, y, line, INK, 12))
            if feeds and i in feeds:
                foot = middle + tall / 2 + 2
                parts.append(_tipped(f"M{x + half:g} {height - 20:g}V{foot:g}"))
                parts.append(_text(x + half, height - 7, feeds[i], INK, 12))
            x += wide[i]
    for start, end, label in jumps:
        a = starts[start] + 8
        b = starts[end] + gaps[end] + wide[end] / 2
        parts.append(_tipped(f"M{a:g} {middle:g}V20H{b:g}V{middle - 14:g}"))
        parts.append(_text(a, 14, label, INK, 12, "start"))
    return _drawing(x + 4, height, title, parts)


class Block(NamedTuple):
    """One box of a U: its level (0 is the highest resolution), its channels, its place."""

    level: int
    channels: int
    part: str  # "down", "middle", "up", or "" for the first and the last convolution
    attention: bool = False
    time: bool = True  # a residual block, to which the time embedding is added


def unet_blocks(config: UNetConfig) -> tuple[list[Block], list[tuple[int, int]]]:
    """Return the blocks of a U-Net in the order of `forward`, and its skips as (from, to)."""
    c, last = config, len(config.channels) - 1
    blocks, stack, skips = [Block(0, c.channels[0], "", time=False)], [0], []
    for level, width in enumerate(c.channels):
        for _ in range(c.layers_per_block):
            stack.append(len(blocks))
            blocks.append(Block(level, width, "down", c.attention[level]))
        if level < last:
            stack.append(len(blocks))
            blocks.append(Block(level + 1, width, "down", time=False))
    for attention in (False, True, False):
        blocks.append(Block(last, c.channels[-1], "middle", attention, time=not attention))
    for level in range(last, -1, -1):
        for _ in range(c.layers_per_block + 1):
            skips.append((stack.pop(), len(blocks)))
            blocks.append(Block(level, c.channels[level], "up", c.attention[level]))
    return [*blocks, Block(0, c.out_channels, "", time=False)], skips


def unet_diagram(
    blocks: Sequence[Block],
    skips: Sequence[tuple[int, int]],
    sample_size: int,
    words: bool = False,
    latents: bool = False,
) -> SVG:
    """Draw the blocks of a U from left to right, one row per level, the skips as arcs.

    `words` colours attention as the reader of words, `latents` the picture that enters. A dot
    marks the blocks that are told the time; without such blocks no time is drawn.
    """
    pitch = 452 / len(blocks)
    wide = 0.66 * pitch
    levels = range(max(block.level for block in blocks) + 1)
    tall = [58 * 0.64**level for level in levels]
    y = [78 + 84 * level for level in levels]  # the middle of each row
    x = [64 + pitch * (i + 0.5) for i in range(len(blocks))]
    sizes = [f"{sample_size // 2**level}×{sample_size // 2**level}" for level in levels]
    parts = [_text(4, y[level] + 4, sizes[level], QUIET, 12, "start") for level in levels]
    for start, end in skips:
        level = blocks[start].level
        inside = sum(start <= a and b <= end and blocks[a].level == level for a, b in skips)
        top = y[level] - tall[level] / 2 - 3
        peak = top - 11 * inside
        parts.append(
            _tipped(
                f"M{x[start]:.1f} {top:.1f}C{x[start]:.1f} {peak:.1f} {x[end]:.1f} {peak:.1f} "
                f"{x[end]:.1f} {top:.1f}"
            )
        )
    for i, (block, after) in enumerate(zip(blocks, blocks[1:], strict=False)):
        parts.append(
            f'<path d="M{x[i] + wide / 2:.1f} {y[block.level]}L{x[i + 1] - wide / 2:.1f} '
            f'{y[after.level]}" stroke="{QUIET}" stroke-width="1.2"/>'
        )
    ends = {0: LATENTS if latents else PIXELS, len(blocks) - 1: NOISE}
    for i, block in enumerate(blocks):
        fill = (WORDS if words else INK) if block.attention else "#E6E8EB"
        top = y[block.level] - tall[block.level] / 2
        parts.append(
            f'<rect x="{x[i] - wide / 2:.1f}" y="{top:.1f}" width="{wide:.1f}" '
            f'height="{tall[block.level]:.1f}" rx="3" fill="{fill}" '
            f'stroke="{ends.get(i, INK)}" stroke-width="{2.5 if i in ends else 1}"/>'
        )
        if block.time:
            parts.append(
                f'<circle cx="{x[i]:.1f}" cy="{top + tall[block.level] - 5:.1f}" r="2.6" '
                f'fill="{PAPER if block.attention else INK}"/>'
            )
    sides = ["down" if i == 0 else block.part for i, block in enumerate(blocks)]
    for (level, channels, _), run in groupby(
        range(len(blocks)), lambda i: (blocks[i].level, blocks[i].channels, sides[i])
    ):
        places = [x[i] for i in run]
        if pitch < 20 and len(places) == 1 and blocks[x.index(places[0])].part == "down":
            continue  # a lone downsampling in a drawing of many boxes: no room for its number
        below = y[level] + tall[level] / 2 + 14
        parts.append(_text(sum(places) / len(places), below, str(channels), INK, 11))
    foot = y[-1] + tall[-1] / 2 + 36
    for part in ("down", "middle", "up"):
        places = [x[i] for i, block in enumerate(blocks) if block.part == part]
        a, b = places[0] - wide / 2, places[-1] + wide / 2
        parts.append(f'<path d="M{a:.1f} {foot}H{b:.1f}" stroke="{QUIET}" stroke-width="1.5"/>')
        parts.append(_text((a + b) / 2, foot + 15, part, INK, 12))
    if any(block.time for block in blocks):
        told = "t → cosines and sines → two linear layers → added at every dot"
        parts.append(_text(x[0] - wide / 2, foot + 36, told, INK, 12, "start"))
        foot += 22
    return _drawing(520, foot + 24, f"U-Net of {len(blocks)} boxes on {len(levels)} levels", parts)


def _text(x: float, y: float, text: str, colour: str, size: float, anchor: str = "middle") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" '
        f'fill="{colour}">{escape(text)}</text>'
    )


def _tipped(path: str) -> str:
    return f'<path d="{path}" fill="none" stroke="{INK}" marker-end="url(#network-tip)"/>'


def _drawing(width: float, height: float, title: str, parts: Sequence[str]) -> SVG:
    return SVG(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
        f'width="{width:g}" role="img" font-family="system-ui, sans-serif">'
        f"<title>{escape(title)}</title>"
        '<defs><marker id="network-tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" '
        f'markerHeight="6" orient="auto"><path d="M0 0L8 4L0 8z" fill="{INK}"/></marker></defs>'
        f'<rect width="{width:g}" height="{height:g}" rx="6" fill="{PAPER}"/>{"".join(parts)}</svg>'
    )

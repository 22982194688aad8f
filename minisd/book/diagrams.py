"""The diagrams of the book, drawn by code as SVG."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from minisd.book.plots import INK, LATENTS, NOISE, PAPER, PIXELS, QUIET, WORDS


@dataclass(frozen=True)
class SVG:
    """A drawing that notebooks and the book show as it is."""

    markup: str

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        return {"image/svg+xml": self.markup, "text/plain": "a diagram"}


@dataclass(frozen=True)
class Part:
    """One box of the system map: its place, its label, and the colour of what it gives out."""

    x: int
    y: int
    label: str
    colour: str
    width: int = 92


MAP = {
    "prompt": Part(8, 30, "prompt", WORDS, 70),
    "tokens": Part(104, 30, "tokens", WORDS, 70),
    "text encoder": Part(192, 30, "text encoder", WORDS, 108),
    "noise": Part(200, 112, "noise", NOISE),
    "unet": Part(340, 30, "U-Net", NOISE),
    "scheduler": Part(340, 112, "scheduler", LATENTS),
    "decoder": Part(480, 112, "decoder", PIXELS, 80),
    "picture": Part(604, 112, "picture", PIXELS, 80),
    "encoder": Part(480, 196, "encoder", LATENTS, 80),
    "training pictures": Part(584, 196, "training set", PIXELS, 104),
    "add noise": Part(340, 196, "add noise", NOISE),
}
ARROWS = (  # from, to; the third is True for what happens in training only
    ("prompt", "tokens", False),
    ("tokens", "text encoder", False),
    ("text encoder", "unet", False),
    ("noise", "scheduler", False),
    ("unet", "scheduler", False),
    ("scheduler", "unet", False),
    ("scheduler", "decoder", False),
    ("decoder", "picture", False),
    ("training pictures", "encoder", True),
    ("encoder", "add noise", True),
    ("add noise", "unet", True),
)
HEIGHT = 38


def system_map(lit: Collection[str] = tuple(MAP), chapters: Mapping[str, str] | None = None) -> SVG:
    """Draw the whole text-to-image system, the parts named in `lit` in colour, the rest pale.

    `chapters` says what to write on the corners of some parts. Raises ValueError for a part that
    is not on the map.
    """
    chapters = chapters or {}
    unknown = (set(lit) | set(chapters)) - set(MAP)
    if unknown:
        raise ValueError(f"{sorted(unknown)} not on the map; its parts are {', '.join(MAP)}")
    boxes = "".join(_box(part, name in lit) for name, part in MAP.items())
    arrows = "".join(_arrow(start, end, dotted, lit) for start, end, dotted in ARROWS)
    badges = "".join(_badge(MAP[name], text) for name, text in chapters.items())
    described = ", ".join(
        MAP[name].label + (f" ({chapters[name]})" if name in chapters else "")
        for name in MAP
        if name in lit
    )
    return SVG(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 692 250" width="692" role="img" '
        'font-family="system-ui, sans-serif" font-size="13">'
        f"<title>Map of the system; lit here: {escape(described)}</title>"
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        f'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="{QUIET}"/></marker></defs>'
        f'<rect width="692" height="250" rx="6" fill="{PAPER}"/>'
        '<rect x="326" y="16" width="120" height="148" rx="8" fill="none" '
        f'stroke="{QUIET}" stroke-width="1" opacity=".6"/>'
        f'<text x="386" y="12" text-anchor="middle" fill="{QUIET}" font-size="11">'
        f"repeat for every step</text>{arrows}{boxes}{badges}"
        f'<text x="8" y="240" fill="{QUIET}" font-size="11">'
        "solid: making a picture · dotted: training</text></svg>"
    )


def _box(part: Part, lit: bool) -> str:
    fill, text = (part.colour, PAPER) if lit else ("#F3F4F6", QUIET)
    middle = part.x + part.width / 2
    return (
        f'<rect x="{part.x}" y="{part.y}" width="{part.width}" height="{HEIGHT}" rx="6" '
        f'fill="{fill}" stroke="{part.colour if lit else "#D5D8DD"}"/>'
        f'<text x="{middle:g}" y="{part.y + 24}" text-anchor="middle" fill="{text}" '
        f'font-weight="{600 if lit else 400}">{escape(part.label)}</text>'
    )


def _badge(part: Part, text: str) -> str:
    width = 9 + 5.6 * len(text)
    x, y = part.x + part.width - width + 5, part.y + HEIGHT - 7
    return (
        f'<rect x="{x:g}" y="{y}" width="{width:g}" height="15" rx="7.5" fill="{PAPER}" '
        f'stroke="{part.colour}"/><text x="{x + width / 2:g}" y="{y + 11}" text-anchor="middle" '
        f'fill="{INK}" font-size="10.5">{escape(text)}</text>'
    )


def _arrow(start: str, end: str, dotted: bool, lit: Collection[str]) -> str:
    a, b = MAP[start], MAP[end]
    if start == "add noise":  # from the training path up to the U-Net, past the scheduler
        path = f"M{a.x} {a.y + 19}H{a.x - 26}V{b.y + 24}H{b.x - 2}"
    elif a.x == b.x:  # the loop of U-Net and scheduler: down on the right, up on the left
        down = a.y < b.y
        x = a.x + (a.width * 0.7 if down else a.width * 0.3)
        path = f"M{x:g} {a.y + HEIGHT if down else a.y}V{b.y - 2 if down else b.y + HEIGHT + 2}"
    elif a.x < b.x:
        path = f"M{a.x + a.width} {a.y + 19}H{b.x - 2}"
    else:
        path = f"M{a.x} {a.y + 19}H{b.x + b.width + 2}"
    colour = INK if start in lit and end in lit else QUIET
    dash = ' stroke-dasharray="2 4"' if dotted else ""
    return (
        f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.4"{dash} '
        'marker-end="url(#tip)"/>'
    )


@dataclass(frozen=True)
class Row:
    """What two systems have in common: its name, and what to write of it on either side.

    With `parameters`, in millions, it is a network; without, the data that flows between two.
    Lines are split by ";".
    """

    label: str
    colour: str
    texts: tuple[str, str]
    parameters: tuple[float, float] | None = None


COLUMNS = 8, 196  # where the two systems begin
LARGEST = 150  # side of the largest square


def side_by_side(titles: tuple[str, str], rows: Collection[Row]) -> SVG:
    """Draw two systems from top to bottom: data as pills, networks as squares of true area."""
    largest = max(max(row.parameters) for row in rows if row.parameters)
    parts, y = [], 36.0
    for x, title in zip(COLUMNS, titles, strict=True):
        parts.append(f'<text x="{x}" y="20" font-weight="600">{escape(title)}</text>')
    for row in rows:
        if y > 36:
            parts += [f'<path d="M{x + 14} {y - 18:g}v14" stroke="{QUIET}"/>' for x in COLUMNS]
        height = 26.0
        for side, x in enumerate(COLUMNS):
            lines = f"{row.label};{row.texts[side]}".split(";")
            if row.parameters is None:
                parts.append(_pill(x, y, " ".join(lines), row.colour))
                continue
            edge = LARGEST * (row.parameters[side] / largest) ** 0.5
            parts.append(_square(x, y, edge, lines, row.colour))
            height = max(height, edge, 17.0 * len(lines))
        y += height + 22
    words = "; ".join(f"{row.label}: {row.texts[0]} and {row.texts[1]}" for row in rows)
    return SVG(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 390 {y - 12:g}" width="520" '
        f'role="img" font-family="system-ui, sans-serif" font-size="13" fill="{INK}">'
        f"<title>{escape(f'{titles[0]} beside {titles[1]}. {words}')}</title>"
        f'<rect width="390" height="{y - 12:g}" rx="6" fill="{PAPER}"/>{"".join(parts)}</svg>'
    )


def _pill(x: float, y: float, text: str, colour: str) -> str:
    return (
        f'<rect x="{x}" y="{y:g}" width="172" height="26" rx="13" fill="none" stroke="{colour}"/>'
        f'<text x="{x + 12}" y="{y + 18:g}">{escape(text)}</text>'
    )


def _square(x: float, y: float, edge: float, lines: list[str], colour: str) -> str:
    inside = edge >= LARGEST  # only the largest has room for its own text
    at, fill = (x + 10, PAPER) if inside else (x + edge + 8, INK)
    words = "".join(
        f'<text x="{at:g}" y="{y + 13 + 17 * i + 6 * inside:g}" fill="{fill}" '
        f'font-weight="{400 if i else 600}">{escape(line.strip())}</text>'
        for i, line in enumerate(lines)
    )
    return f'<rect x="{x}" y="{y:g}" width="{edge:g}" height="{edge:g}" fill="{colour}"/>{words}'


def ladder(steps: Sequence[tuple[str, str]], title: str, colour: str = WORDS) -> SVG:
    """Draw steps from top to bottom: in boxes what is done, beside each what comes out of it.

    A step is (label, result); one without a label is what the first step is given.
    """
    parts, height = [], 46 * len(steps) + 4
    for row, (label, result) in enumerate(steps):
        y = 46 * row + 8
        if label:
            parts.append(
                f'<rect x="8" y="{y}" width="132" height="30" rx="6" fill="{colour}"/>'
                f'<text x="74" y="{y + 20}" text-anchor="middle" fill="{PAPER}" '
                f'font-weight="600">{escape(label)}</text>'
            )
        if row + 1 < len(steps):
            top = y + (30 if label else 24)
            parts.append(
                f'<path d="M74 {top}V{y + 44}" stroke="{QUIET}" stroke-width="1.4" '
                'marker-end="url(#rung)"/>'
            )
        place = f'x="156" y="{y + 20}"' if label else f'x="14" y="{y + 18}"'
        parts.append(f'<text {place} fill="{INK}">{escape(result)}</text>')
    return SVG(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 500 {height}" width="500" '
        f'role="img" font-family="system-ui, sans-serif" font-size="14">'
        f"<title>{escape(title)}</title>"
        '<defs><marker id="rung" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        f'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="{QUIET}"/></marker></defs>'
        f'<rect width="500" height="{height}" rx="6" fill="{PAPER}"/>{"".join(parts)}</svg>'
    )

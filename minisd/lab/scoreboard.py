"""Chapter 12: all models of the book in one table: how good, how large, at what price.

It is made of the cards of the bundled checkpoints and of nothing else.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minisd.files import read_json
from minisd.lab.evaluation import FID, MEAN_IOU, PROMPT_ACCURACY, SECONDS
from minisd.lab.recipes import RECIPES
from minisd.lab.results import table
from minisd.lab.scores import Score, scores_of
from minisd.pretrained import CHECKPOINTS

HEADLINES = {  # of each model: what stands for it in the table, and the name of that score
    "digits-judge": {"unseen digits read right": "accuracy on unseen digits"},
    "digits-ddpm": {"FID, in features of the judge": FID},
    "digits-class": {"drawn as asked": "judged as asked"},
    "tokenizer-postcards": {
        "unseen captions that decode to themselves": "captions that decode to themselves",
    },
    "postcards-judge": {
        "subject read right, seen": "subject, seen combinations",
        "subject read right, held-out": "subject, held-out combinations",
    },
    "clip-postcards": {
        "zero-shot subject, seen": "zero-shot subject, seen combinations",
        "zero-shot subject, held-out": "zero-shot subject, held-out combinations",
    },
    "postcards-vae": {
        "PSNR of reconstructions, seen": "PSNR, seen combinations",
        "PSNR of reconstructions, held-out": "PSNR, held-out combinations",
    },
    "postcards": {
        "prompt accuracy, seen": f"{PROMPT_ACCURACY}, seen combinations",
        "prompt accuracy, held-out": f"{PROMPT_ACCURACY}, held-out combinations",
    },
    "postcards-segmenter": {
        "mean IoU, seen": f"{MEAN_IOU}, seen combinations",
        "mean IoU, held-out": f"{MEAN_IOU}, held-out combinations",
    },
    "postcards-maps": {
        "prompt accuracy with a map, seen": "map and caption: all attributes, seen combinations",
        "prompt accuracy with a map, held-out": (
            "map and caption: all attributes, held-out combinations"
        ),
        "mean IoU with its map, seen": f"map and caption: {MEAN_IOU}, seen combinations",
        "mean IoU with its map, held-out": f"map and caption: {MEAN_IOU}, held-out combinations",
    },
}
SYSTEM = "postcards"  # the model that is joined with the others it needs
COLUMNS = ("model", "score", "value", "95 % interval", "parameters", "training", "s / picture")


@dataclass(frozen=True)
class Entry:
    """One score of one model, in words; an empty field was never measured."""

    model: str
    score: str
    value: str
    interval: str
    parameters: str
    training: str
    seconds: str


def in_short(seconds: float) -> str:
    """Write a time as minutes, or as seconds if it is short."""
    return f"{seconds:.0f} s" if seconds < 60 else f"{seconds / 60:.0f} min"


def entries_of(training: dict[str, Any]) -> list[Entry]:
    """Return the entries of one model, from its `training.json`; the first names the costs."""
    name, scores = training["recipe"], scores_of(training)
    parameters = f"{training['parameters']:,}" if "parameters" in training else ""
    seconds = scores.get(SECONDS)
    costs = [
        parameters,
        in_short(training["cost"]["seconds"]),
        seconds.figure if isinstance(seconds, Score) else "",
    ]
    entries: list[Entry] = []
    for title, key in HEADLINES[name].items():
        score = scores.get(key)
        value, interval = "not scored yet", ""
        if isinstance(score, Score):
            value, interval = score.figure, score.interval
        model, cells = ("", [""] * 3) if entries else (name, costs)
        entries.append(Entry(model, title, value, interval, *cells))
    return entries


def scoreboard(folder: Path = CHECKPOINTS) -> list[Entry]:
    """Return the entries of all checkpoints in a folder, in the order of the recipes."""
    files = {name: folder / name / "training.json" for name in RECIPES}
    cards = {name: read_json(file) for name, file in files.items() if file.is_file()}
    entries = [entry for training in cards.values() for entry in entries_of(training)]
    parts = [*RECIPES[SYSTEM].requires, SYSTEM]
    if all(part in cards for part in parts):
        size = sum(cards[part].get("parameters", 0) for part in parts)
        spent = sum(cards[part]["cost"]["seconds"] for part in parts)
        costs = [f"{size:,}", in_short(spent), ""]
        entries.append(Entry("together", "text to image, its four parts", "", "", *costs))
    return entries


def as_markdown(entries: list[Entry]) -> str:
    """Return the entries as a table in Markdown; what was never measured of a model is a dash."""
    rows = []
    for entry in entries:
        model, *cells = vars(entry).values()
        if model:  # another score of the same model repeats nothing
            cells = [cell or "–" for cell in cells]
        rows.append((f"`{model}`" if model in RECIPES else model, *cells))
    return "\n".join(table(COLUMNS, "llrrrrr", rows))

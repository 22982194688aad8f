"""Chapters 4 to 12: what all evaluations share: settings, samples, and the time of one picture."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from minisd.data.postcards import LAYERS, TWO, Postcards, Split
from minisd.device import best_device, device_name, seeded
from minisd.lab.artist import Artist
from minisd.lab.scores import Score, Scores
from minisd.pretrained import locate
from minisd.progress import progress
from minisd.schedulers.settings import CONFIG_FILE
from minisd.stable_diffusion import INDEX

UNSEEN_SEED = 7  # of the postcards that score: no recipe trains on them
SPLITS: dict[Split, str] = {"test": "seen combinations", "held_out": "held-out combinations"}
PAIRS: dict[Split, str] = {
    "test": "two subjects, seen pairs",
    "held_out": "two subjects, held-out pairs",
}
TOKENIZER, POSTCARDS_CLIP = "tokenizer-postcards", "clip-postcards"
POSTCARDS, POSTCARDS_SEGMENTER = "postcards", "postcards-segmenter"
DIGITS_JUDGE, POSTCARDS_JUDGE = "digits-judge", "postcards-judge"
FID = "FID (judge features, not comparable with Inception FID)"
LAYOUT = LAYERS[:3]  # the large things of a map: companions are few pixels each
MEAN_IOU = f"mean IoU of {', '.join(LAYOUT)}"
PROMPT_ACCURACY, EVERYTHING = "prompt accuracy, all attributes", "all attributes"
SECONDS = "seconds per picture"
REPEATS = 5  # of which the median counts


@dataclass(frozen=True)
class EvaluationSettings:
    """How to score: n samples, and for a model that draws, how. None is the model's own choice.

    A `witness` is a second network beside the judge, in whose features the quality of postcards is
    measured as well.
    """

    n: int = 5000
    seed: int = 0
    steps: int = 25
    sampler: str | None = None
    guidance: float = 4.0
    judge: str | None = None
    witness: str | None = None


def unseen(n: int) -> Iterator[tuple[str, Postcards]]:
    """Yield n postcards of each kind that no recipe trains on, and what kind they are, in words.

    Postcards with two subjects are among them if the models learn of such.
    """
    for two, kinds in ((0.0, SPLITS), (1.0, PAIRS if TWO else {})):
        for split, words in kinds.items():
            yield words, Postcards(split, n, seed=UNSEEN_SEED, two=two)


Evaluation = Callable[[str | Path, EvaluationSettings], Scores]


class Drawn(NamedTuple):
    """The pictures (n,c,h,w) in [-1,1] that a model drew, and in words how it did."""

    images: Tensor
    how: str


def draw(
    model: str | Path,
    settings: EvaluationSettings,
    prompts: list[str] | None = None,
    maps: Tensor | None = None,
) -> Drawn:
    """Draw one picture for each prompt, and for each map (n,h,w) if any, with a model.

    A model that reads no prompts draws as many as the settings say.
    """
    artist = Artist(str(model), settings.sampler, best_device())
    generator = seeded(settings.seed)
    n = settings.n if prompts is None else len(prompts)
    batches = artist.draw(prompts, n, settings.steps, generator, settings.guidance, maps=maps)
    images = torch.cat(list(progress(batches, unit="batch", delay=1)))
    how = f"seed {settings.seed}, {settings.steps} steps of {artist.sampler}"
    if prompts is not None:
        how += f", guidance {settings.guidance:g}"
    return Drawn(images, how)


def speed(model: str | Path, settings: EvaluationSettings) -> Scores:
    """Return the median time of one picture, from its prompt to its pixels, the model loaded.

    A model without a scheduler does not draw: there is nothing to time, and no score.
    """
    folder = locate(model, "", (CONFIG_FILE, INDEX))
    if not any((folder / file).is_file() for file in (CONFIG_FILE, INDEX)):
        return {}
    artist = Artist(str(model), settings.sampler, best_device())
    prompts = None if artist.example is None else [artist.example]
    generator = seeded(settings.seed)
    times = []
    for _ in range(1 + REPEATS):
        start = time.perf_counter()
        list(artist.draw(prompts, 1, settings.steps, generator, settings.guidance))
        times.append(time.perf_counter() - start)
    seconds = statistics.median(times[1:])  # the first call is slower than the others
    how = f"one alone, {settings.steps} steps of {artist.sampler}"
    note = f"{how}; median of {REPEATS}; {device_name(artist.device)}"
    return {SECONDS: Score(seconds, digits=2, note=note)}

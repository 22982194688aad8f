"""Guidance and steps, swept on one model: prompts obeyed, CLIP score, FID, and what they cost.

    python benchmarks/guidance_and_steps.py [--samples 200] [--save]

Prints one table. With `--save` the rows are kept beside the checkpoint, as `sweeps.json`: chapter
12 draws its figures from them, and an interrupted run goes on from there. Every row gets the same
captions, `--samples` of seen and as many of held-out combinations, and the same noise. FID is
measured as by `minisd evaluate`, and compares only at equal numbers of samples.
"""

import argparse
import time
from pathlib import Path

import torch
from tqdm import tqdm

from minisd import CLIP, Tokenizer
from minisd.classifier import Classifier, classify
from minisd.data.postcards import JUDGED, Postcards
from minisd.device import in_batches
from minisd.files import read_json
from minisd.intervals import bootstrap_interval
from minisd.lab.evaluation import (
    POSTCARDS_CLIP,
    POSTCARDS_JUDGE,
    SPLITS,
    TOKENIZER,
    UNSEEN_SEED,
    EvaluationSettings,
    draw,
)
from minisd.lab.results import Results, table
from minisd.metrics import clip_scores, frechet_distance, frechet_interval
from minisd.pretrained import locate

MODEL, FILE = "postcards", "sweeps.json"
USUAL = (4.0, 25)  # guidance scale, steps
ROWS = [(scale, USUAL[1]) for scale in (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 9.0)]
ROWS += [(USUAL[0], steps) for steps in (1, 2, 3, 5, 8, 12, 50)]


def real_features(judge: Classifier, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features of the postcards whose captions are drawn, and of their twins."""
    asked = [Postcards(split, n, UNSEEN_SEED) for split in SPLITS]
    return tuple(
        in_batches(judge.features, torch.cat(images))
        for images in ([data.images() for data in asked], [data.twins() for data in asked])
    )


def measure(
    model: str | Path, judge: Classifier, real: torch.Tensor, row: tuple[float, int], n: int
) -> dict:
    """Draw the captions of both splits at one guidance scale and number of steps, and score."""
    scale, steps = row
    clip, tokenizer = CLIP.from_pretrained(POSTCARDS_CLIP), Tokenizer.from_pretrained(TOKENIZER)
    settings = EvaluationSettings(n, seed=0, steps=steps, guidance=scale)
    result = {"scale": scale, "steps": steps, "calls": steps * (1 + (scale != 1)), "samples": n}
    pictures, cosines, seconds = [], [], 0.0
    for split in SPLITS:
        data = Postcards(split, n, seed=UNSEEN_SEED)
        start = time.perf_counter()
        images, _ = draw(locate(model), settings, data.full_captions)
        seconds += time.perf_counter() - start
        right = classify(judge, images) == data.labels
        result[split] = {"all": int(right.all(dim=1).sum())}
        result[split] |= dict(zip(JUDGED, right.sum(dim=0).tolist(), strict=True))
        pictures.append(images)
        cosines.append(clip_scores(clip, tokenizer, images, data.full_captions))
    features, cosines = in_batches(judge.features, torch.cat(pictures)), torch.cat(cosines)
    generator = torch.Generator().manual_seed(0)
    return result | {
        "clip": float(cosines.mean()),
        "clip_interval": bootstrap_interval(
            lambda rows: float(rows.mean()), cosines, generator=generator
        ),
        "fid": frechet_distance(features, real),
        "fid_interval": frechet_interval(features, real, generator=generator),
        "milliseconds": 1000 * seconds / len(features),
    }


def main() -> None:
    """Measure all rows and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=MODEL, help="a text-to-image checkpoint of postcards")
    parser.add_argument("--samples", type=int, default=200, help="captions of each kind")
    parser.add_argument("--save", action="store_true", help=f"keep the rows in {FILE}")
    arguments = parser.parse_args()

    folder, n = locate(arguments.model), arguments.samples
    judge, path = Classifier.from_pretrained(POSTCARDS_JUDGE), folder / FILE
    about = {"model": read_json(folder / "training.json")["commit"], "samples": n, "seed": 0}
    real, twins = real_features(judge, n)
    fid_real = frechet_distance(twins, real)
    results = Results(about, path if arguments.save else None, fid_real=fid_real)
    done = {(row["scale"], row["steps"]) for row in results.rows}
    for row in tqdm([row for row in ROWS if row not in done]):
        results.add(measure(folder, judge, real, row, n))

    print(f"{arguments.model}, {n} captions of each kind; ", end="")
    print(f"FID of real postcards of the same scenes: {fid_real:.2f}")
    head = "guidance", "steps", "calls", "seen", "held-out", "CLIP score", "FID", "95 %", "ms/image"
    rows = [
        [
            f"{row['scale']:g}",
            row["steps"],
            row["calls"],
            *(f"{row[split]['all'] / n:.1%}" for split in SPLITS),
            f"{row['clip']:.3f}",
            f"{row['fid']:.2f}",
            "{:.2f} to {:.2f}".format(*row["fid_interval"]),
            f"{row['milliseconds']:.0f}",
        ]
        for row in sorted(results.rows, key=lambda row: (row["steps"], row["scale"]))
    ]
    print(*table(head, "rrrrrrrlr", rows), sep="\n")


if __name__ == "__main__":
    main()

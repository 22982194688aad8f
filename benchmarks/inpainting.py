"""How well inpainting works: another subject in each of 200 unseen postcards.

    python benchmarks/inpainting.py [--samples 200] [--save]

Prints one table: how often the judge sees the subject that was asked for; how far the pixels
outside of the mask are from the original, at the end and before they are put back, beside what the
autoencoder alone changes there; and how far pixels jump across the edge of the mask, beside the
original and a picture drawn alone and pasted. `--save` keeps the scores in the card of the model.
"""

import argparse

from minisd.lab.cards import add_scores
from minisd.lab.evaluation import EvaluationSettings, evaluate_inpainting
from minisd.lab.results import table
from minisd.pretrained import locate

MODEL = "postcards"


def main() -> None:
    """Measure, print, and keep the scores if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--save", action="store_true")
    arguments = parser.parse_args()
    folder = locate(MODEL)
    scores = evaluate_inpainting(folder, EvaluationSettings(n=arguments.samples))
    print(*table(["score", "value"], "ll", list(scores.items())), sep="\n")
    if arguments.save:
        add_scores(folder, scores)


if __name__ == "__main__":
    main()

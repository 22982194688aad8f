"""Chapters 4 to 12: the scores that a card shows, one function for each kind of model.

A recipe names the function that scores what it makes; `minisd evaluate` calls it.
"""

from minisd.lab.evaluation.digits import (
    DigitScores,
    evaluate_digits,
    evaluate_digits_class,
    evaluate_digits_judge,
    score_digits,
)
from minisd.lab.evaluation.inpainting import evaluate_inpainting
from minisd.lab.evaluation.maps import evaluate_postcards_maps, evaluate_postcards_segmenter
from minisd.lab.evaluation.postcards import (
    evaluate_postcards,
    evaluate_postcards_clip,
    evaluate_postcards_judge,
    evaluate_postcards_vae,
    evaluate_tokenizer,
)
from minisd.lab.evaluation.settings import (
    DIGITS_JUDGE,
    FID,
    LAYOUT,
    MEAN_IOU,
    POSTCARDS,
    POSTCARDS_CLIP,
    POSTCARDS_JUDGE,
    POSTCARDS_SEGMENTER,
    PROMPT_ACCURACY,
    SECONDS,
    SPLITS,
    TOKENIZER,
    UNSEEN_SEED,
    Drawn,
    Evaluation,
    EvaluationSettings,
    draw,
    speed,
)

__all__ = [
    "DIGITS_JUDGE", "FID", "LAYOUT", "MEAN_IOU", "POSTCARDS", "POSTCARDS_CLIP", "POSTCARDS_JUDGE",
    "POSTCARDS_SEGMENTER", "PROMPT_ACCURACY", "SECONDS", "SPLITS", "TOKENIZER", "UNSEEN_SEED",
    "DigitScores", "Drawn", "Evaluation", "EvaluationSettings", "draw", "evaluate_digits",
    "evaluate_digits_class", "evaluate_digits_judge", "evaluate_inpainting", "evaluate_postcards",
    "evaluate_postcards_clip", "evaluate_postcards_judge", "evaluate_postcards_maps",
    "evaluate_postcards_segmenter", "evaluate_postcards_vae", "evaluate_tokenizer",
    "score_digits", "speed",
]  # fmt: skip

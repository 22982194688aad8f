"""Chapter 11: the scores of the segmenter, and of the model that draws from maps."""

from pathlib import Path

import torch
from torch import Tensor

from minisd.classifier import Classifier, classify
from minisd.data.postcards import LAYERS
from minisd.intervals import bootstrap_interval
from minisd.lab.evaluation.postcards import reconstructed, shares_of_right
from minisd.lab.evaluation.settings import (
    EVERYTHING,
    LAYOUT,
    MEAN_IOU,
    POSTCARDS_JUDGE,
    POSTCARDS_SEGMENTER,
    EvaluationSettings,
    draw,
    unseen,
)
from minisd.lab.scores import Score, Scores
from minisd.maps import MapPipeline
from minisd.metrics import mean_iou, overlaps, segment
from minisd.unet import UNet


def evaluate_postcards_segmenter(model: str | Path, settings: EvaluationSettings) -> Scores:
    """Score a segmenter on unseen postcards: the mean IoU, and that of each label."""
    segmenter = UNet.from_pretrained(model)
    scores: Scores = {}
    for words, data in unseen(settings.n):
        found, wanted = segment(segmenter, data.images()), data.masks()
        scores[f"{MEAN_IOU}, {words}"] = iou(found, wanted, settings.seed)
        counts = overlaps(found, wanted, len(LAYERS))
        for label, name in enumerate(LAYERS):
            scores[f"IoU of {name}, {words}"] = Score(
                mean_iou(counts[:, label : label + 1]), n=settings.n
            )
    return scores


def evaluate_postcards_maps(model: str | Path, settings: EvaluationSettings) -> Scores:
    """Score pictures drawn from n maps with their captions, from maps alone, from captions alone.

    A judge says whether they show what was asked; a map without a caption asks only for subject and
    place. A segmenter finds the map of each picture, which is compared with the one that was given.
    """
    name = settings.judge or POSTCARDS_JUDGE
    judge, segmenter = Classifier.from_pretrained(name), UNet.from_pretrained(POSTCARDS_SEGMENTER)
    vae = MapPipeline.from_pretrained(model).vae
    scores: Scores = {}
    for words, data in unseen(settings.n):
        maps, decoded = data.masks(), reconstructed(vae, data.images())
        for title, captions, given, settled in (
            ("map and caption", data.full_captions, maps, ("", *judge.heads)),
            ("map alone", [""] * settings.n, maps, ("subject", "place")),
            ("caption alone", data.full_captions, None, ("", *judge.heads)),
        ):
            drawn, how = draw(model, settings, captions, given)
            scores["samples"] = f"{settings.n:,} of each kind, {how}; judge {name}"
            right = classify(judge, drawn) == data.labels
            shares = shares_of_right(EVERYTHING, judge, right, words)
            for question in settled:
                question = f"{question or EVERYTHING}, {words}"
                scores[f"{title}: {question}"] = shares[question]
            found = segment(segmenter, drawn)
            scores[f"{title}: {MEAN_IOU}, {words}"] = iou(found, maps, settings.seed)
        scores[f"real postcards, decoded: {MEAN_IOU}, {words}"] = iou(
            segment(segmenter, decoded), maps, settings.seed
        )
    return scores


def iou(found: Tensor, wanted: Tensor, seed: int) -> Score:
    """Return the mean IoU of the LAYOUT of two maps (n,h,w) as a score."""
    counts = overlaps(found, wanted, len(LAYERS))[:, : len(LAYOUT)]
    low, high = bootstrap_interval(mean_iou, counts, generator=torch.Generator().manual_seed(seed))
    return Score(mean_iou(counts), low, high, len(counts))

"""Chapters 4 to 12: the scores that a card shows, one function for each kind of model.

A recipe names the function that scores what it makes; `minisd evaluate` calls it.
"""

import math
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from minisd.classifier import (
    Classifier,
    classification_accuracies,
    classification_accuracy,
    classify,
)
from minisd.clip import CLIP
from minisd.data.digits import digits
from minisd.data.postcards import ATTRIBUTES, CLASSES, LAYERS, Postcards
from minisd.data.postcards.captions import prompts
from minisd.device import best_device, device_name, seeded
from minisd.intervals import Accuracy, bootstrap_interval
from minisd.lab.artist import Artist
from minisd.maps import MapPipeline
from minisd.metrics import (
    class_embeddings,
    clip_scores,
    frechet_distance,
    frechet_interval,
    in_batches,
    mean_iou,
    overlaps,
    psnr,
    retrieve,
    segment,
    ssim,
    zero_shot,
)
from minisd.progress import progress
from minisd.schedulers.base import CONFIG_FILE
from minisd.stable_diffusion import INDEX
from minisd.tokenizer import Tokenizer
from minisd.unet import UNet
from minisd.vae import AutoencoderKL

UNSEEN_SEED = 7  # of the postcards that score: no recipe trains on them
SPLITS = {"test": "seen combinations", "held_out": "held-out combinations"}
TOKENIZER, POSTCARDS_CLIP = "tokenizer-postcards", "clip-postcards"
POSTCARDS, POSTCARDS_SEGMENTER = "postcards", "postcards-segmenter"
DIGITS_JUDGE, POSTCARDS_JUDGE = "digits-judge", "postcards-judge"
LAYOUT = LAYERS[:3]  # the large things of a map: companions are few pixels each
MEAN_IOU = f"mean IoU of {', '.join(LAYOUT)}"
EVERYTHING = "all attributes"
GROUP = 256  # among how many retrieval chooses
SECONDS = "seconds per picture"
REPEATS = 5  # of which the median counts


@dataclass(frozen=True)
class EvaluationSettings:
    """How to score: n samples, and for a model that draws, how. None is the model's own choice."""

    n: int = 5000
    seed: int = 0
    steps: int = 25
    sampler: str | None = None
    guidance: float = 4.0
    judge: str | None = None


class Drawn(NamedTuple):
    """The pictures (n,c,h,w) that a model drew to be scored, and in words how."""

    images: Tensor
    how: str


def draw(
    folder: Path,
    settings: EvaluationSettings,
    prompts: list[str] | None = None,
    maps: Tensor | None = None,
) -> Drawn:
    """Let the model in `folder` draw, one picture for each prompt, and each map (n,h,w) if any."""
    artist = Artist(str(folder), settings.sampler, best_device())
    generator = seeded(settings.seed)
    n = settings.n if prompts is None else len(prompts)
    batches = artist.draw(prompts, n, settings.steps, generator, settings.guidance, maps=maps)
    images = torch.cat(list(progress(batches, unit="batch", delay=1)))
    how = f"seed {settings.seed}, {settings.steps} steps of {artist.sampler}"
    if prompts is not None:
        how += f", guidance {settings.guidance:g}"
    return Drawn(images, how)


Scores = dict[str, str]
Evaluation = Callable[[Path, EvaluationSettings], Scores]


def speed(folder: Path, settings: EvaluationSettings) -> Scores:
    """Time one picture, from its prompt to its pixels, with the model loaded: a median.

    A model without a scheduler does not draw, and has no time to tell.
    """
    if not any((folder / file).is_file() for file in (CONFIG_FILE, INDEX)):
        return {}
    artist = Artist(str(folder), settings.sampler, best_device())
    prompts = None if artist.example is None else [artist.example]
    generator = seeded(settings.seed)
    times = []
    for _ in range(1 + REPEATS):
        start = time.perf_counter()
        list(artist.draw(prompts, 1, settings.steps, generator, settings.guidance))
        times.append(time.perf_counter() - start)
    seconds = statistics.median(times[1:])  # the first call is slower than all others
    how = f"one alone, {settings.steps} steps of {artist.sampler}"
    return {SECONDS: f"{seconds:.2f} ({how}; median of {REPEATS}; {device_name(artist.device)})"}


def in_words(accuracy: Accuracy) -> str:
    """Write a share with its interval."""
    low, high = accuracy.interval
    return f"{accuracy.value:.2%} (95 % interval {low:.2%} to {high:.2%})"


def mean_in_words(values: Tensor, digits: int, unit: str = "") -> str:
    """Write the mean of values (n,) with its bootstrap interval."""
    low, high = bootstrap_interval(
        lambda rows: float(rows.mean()), values, generator=torch.Generator().manual_seed(0)
    )
    mean = f"{values.mean():.{digits}f}{unit}"
    return f"{mean} (95 % interval {low:.{digits}f} to {high:.{digits}f})"


@dataclass(frozen=True)
class DigitScores:
    """The scores of unconditional digits, each with what real digits reach."""

    n: int
    fid: float
    fid_interval: tuple[float, float]
    fid_real: float  # real training digits against the same real test digits, equal n
    confidence: float  # mean probability of the judge's first choice
    confidence_real: float
    class_shares: tuple[float, ...]  # how often each digit was drawn
    class_balance: float  # entropy of the shares over that of a uniform draw: 1 is perfect


def score_digits(
    judge: Classifier,
    samples: Tensor,
    real_train: Tensor,
    real_test: Tensor,
    generator: torch.Generator | None = None,
) -> DigitScores:
    """Compare samples (n,1,28,28) with as many real digits, by the judge's features and answers.

    The interval is a bootstrap over samples. Raises ValueError if there are fewer real digits.
    """
    n = len(samples)
    if min(len(real_train), len(real_test)) < n:
        raise ValueError(
            f"{n} samples need as many real digits, got {len(real_train)} and {len(real_test)}"
        )
    chosen = torch.randperm(len(real_train), generator=generator)[:n]
    features, train, test = (
        in_batches(judge.features, images)
        for images in (samples, real_train[chosen], real_test[:n])
    )
    head = judge.heads["digit"]
    with torch.no_grad():
        probabilities, real_probabilities = head(features).softmax(-1), head(test).softmax(-1)
    shares = probabilities.argmax(-1).bincount(minlength=probabilities.shape[1]) / n
    return DigitScores(
        n=n,
        fid=frechet_distance(features, test),
        fid_interval=bootstrap_interval(
            lambda rows: frechet_distance(rows, test), features, generator=generator
        ),
        fid_real=frechet_distance(train, test),
        confidence=float(probabilities.amax(-1).mean()),
        confidence_real=float(real_probabilities.amax(-1).mean()),
        class_shares=tuple(shares.tolist()),
        class_balance=float(torch.special.entr(shares).sum() / math.log(len(shares))),
    )


def evaluate_digits_judge(folder: Path, settings: EvaluationSettings) -> Scores:
    """Score a judge of digits on all unseen digits."""
    data = digits("test")
    accuracy = classification_accuracy(Classifier.from_pretrained(folder), data.images, data.labels)
    return {f"accuracy on {accuracy.n:,} unseen digits ({data.source})": in_words(accuracy)}


def evaluate_postcards_judge(folder: Path, settings: EvaluationSettings) -> Scores:
    """Score a judge of postcards, question by question, on unseen scenes."""
    judge, scores = Classifier.from_pretrained(folder), {}
    for split, name in SPLITS.items():
        data = Postcards(split, settings.n, seed=UNSEEN_SEED)
        for question, accuracy in classification_accuracies(
            judge, data.images(), data.labels
        ).items():
            scores[f"{question}, {accuracy.n:,} postcards, {name}"] = in_words(accuracy)
    return scores


def evaluate_digits(folder: Path, settings: EvaluationSettings) -> Scores:
    """Score a model that draws digits: FID, the judge's confidence, and class balance."""
    n, data = settings.n, digits("test")
    if n > len(data.images):
        raise ValueError(f"{n} samples need as many real digits; there are {len(data.images)}")
    judge = settings.judge or DIGITS_JUDGE
    referee = Classifier.from_pretrained(judge)  # before the long part
    samples, how = draw(folder, settings)
    generator = torch.Generator().manual_seed(settings.seed)
    found = score_digits(referee, samples, digits("train").images, data.images, generator)
    low, high = found.fid_interval
    shares = ", ".join(f"{k}: {share:.1%}" for k, share in enumerate(found.class_shares))
    return {
        "samples": f"{n:,}, {how}; judge {judge}; against {data.source}",
        "FID (judge features, not comparable with Inception FID)": f"{found.fid:.3f} "
        f"(95 % interval {low:.3f} to {high:.3f})",
        "FID of real training digits": f"{found.fid_real:.3f}",
        "FID ratio": f"{found.fid / found.fid_real:.2f}",
        "judge confidence": f"{found.confidence:.2%} (real digits {found.confidence_real:.2%})",
        "class balance": f"{found.class_balance:.4f} of 1 ({shares})",
    }


def evaluate_digits_class(folder: Path, settings: EvaluationSettings) -> Scores:
    """Score a model that draws the digit it is asked for: all ten in turn, with guidance."""
    name = settings.judge or DIGITS_JUDGE
    judge = Classifier.from_pretrained(name)
    asked = torch.arange(settings.n) % 10
    samples, how = draw(folder, settings, [str(digit) for digit in asked.tolist()])
    right = classify(judge, samples)[:, 0] == asked
    scores = {
        "samples": f"{settings.n:,}, {how}; judge {name}",
        "judged as asked": in_words(Accuracy(int(right.sum()), settings.n)),
    }
    for digit in asked.unique().tolist():
        of_digit = right[asked == digit]
        scores[f"judged as asked, {digit}"] = in_words(Accuracy(int(of_digit.sum()), len(of_digit)))
    return scores


def evaluate_tokenizer(folder: Path, settings: EvaluationSettings) -> Scores:
    """Score a tokenizer on captions that it has not learned from: how short, and how exact."""
    tokenizer, scores = Tokenizer.from_pretrained(folder), {}
    data = Postcards("held_out", settings.n, seed=UNSEEN_SEED)
    for name, captions in (("captions", data.captions), ("full captions", data.full_captions)):
        ids = [tokenizer.encode(caption) for caption in captions]
        lengths = torch.tensor([len(row) for row in ids], dtype=torch.float64)
        exact = sum(map(str.__eq__, map(tokenizer.decode, ids), captions))
        scores[f"tokens in {settings.n:,} unseen {name}"] = (
            f"{lengths.mean():.1f} on average, at most {int(lengths.max())}"
        )
        scores[f"{name} that decode to themselves"] = in_words(Accuracy(exact, settings.n))
    return {"vocabulary": f"{tokenizer.vocab_size:,} tokens", **scores}


def evaluate_postcards_clip(folder: Path, settings: EvaluationSettings) -> Scores:
    """Score a CLIP of postcards: naming what is there, and finding the other half of a pair."""
    clip, tokenizer, scores = CLIP.from_pretrained(folder), Tokenizer.from_pretrained(TOKENIZER), {}
    for split, name in SPLITS.items():
        data = Postcards(split, settings.n, seed=UNSEEN_SEED)
        images = in_batches(clip.encode_image, data.images())
        texts = in_batches(clip.encode_text, tokenizer(data.full_captions))
        for (attribute, _), labels in zip(CLASSES, data.labels.T, strict=True):
            classes = class_embeddings(clip, tokenizer, prompts(attribute))
            right = Accuracy(int((zero_shot(images, classes) == labels).sum()), settings.n)
            scores[f"zero-shot {attribute}, {settings.n:,} postcards, {name}"] = in_words(right)
        group = min(GROUP, settings.n)
        for found, queries, keys in (("caption", images, texts), ("postcard", texts, images)):
            exact, same = retrieval(queries, keys, data.labels, group)
            scores[f"{found} found among {group} (recall@1), {name}"] = (
                f"{in_words(exact)}; all attributes right: {in_words(same)}"
            )
    return scores


def evaluate_postcards_vae(folder: Path, settings: EvaluationSettings) -> Scores:
    """Score an autoencoder on unseen postcards: what comes back, and what a judge sees in it."""
    judge = Classifier.from_pretrained(settings.judge or POSTCARDS_JUDGE)
    vae, scores = AutoencoderKL.from_pretrained(folder), {}
    for split, name in SPLITS.items():
        data = Postcards(split, settings.n, seed=UNSEEN_SEED)
        images = data.images()
        decoded = reconstructed(vae, images)
        decibels, similarity = psnr(decoded, images), ssim(decoded, images)
        scores[f"PSNR, {settings.n:,} postcards, {name}"] = mean_in_words(decibels, 2, " dB")
        scores[f"SSIM, {settings.n:,} postcards, {name}"] = mean_in_words(similarity, 4)
        right = classify(judge, decoded) == data.labels
        scores |= shares_of_right("judged right in every attribute", judge, right, name)
    latents = in_batches(vae.encode, images)
    return {"standard deviation of the latents": f"{latents.std():.3f}", **scores}


def reconstructed(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Return images (n,3,h,w) in [-1,1] after the way through the autoencoder and back."""
    return in_batches(lambda batch: vae.decode(vae.encode(batch)).clamp(-1, 1), images)


def evaluate_postcards(folder: Path, settings: EvaluationSettings) -> Scores:
    """Score text to image: a picture for each of n full captions, seen and held-out each.

    A judge says whether it shows what was asked; FID compares all of them with the real postcards
    of these captions, and so, for comparison, the twins of those; the CLIP score is the cosine of
    picture and caption.
    """
    name = settings.judge or POSTCARDS_JUDGE
    judge, clip = Classifier.from_pretrained(name), CLIP.from_pretrained(POSTCARDS_CLIP)
    tokenizer = Tokenizer.from_pretrained(TOKENIZER)
    scores: Scores = {}
    pictures, real, twins = [], [], []
    pairs = {"drawn": [], "real": [], "shuffled": []}
    for split, words in SPLITS.items():
        data = Postcards(split, settings.n, seed=UNSEEN_SEED)
        images, how = draw(folder, settings, data.full_captions)
        answers = classify(judge, images)
        right = answers == data.labels
        scores |= shares_of_right("prompt accuracy, all attributes", judge, right, words)
        scores[f"subjects most often mistaken, {words}"] = confused(data.labels, answers)
        pictures.append(images)
        real.append(data.images())
        twins.append(data.twins())
        captions = data.full_captions
        for kind, shown, said in (
            ("drawn", images, captions),
            ("real", real[-1], captions),
            ("shuffled", real[-1], captions[-1:] + captions[:-1]),
        ):
            pairs[kind].append(clip_scores(clip, tokenizer, shown, said))
    drawn, truth, other = (
        in_batches(judge.features, torch.cat(images)) for images in (pictures, real, twins)
    )
    cosines = {kind: torch.cat(values).mean() for kind, values in pairs.items()}
    generator = torch.Generator().manual_seed(settings.seed)
    low, high = frechet_interval(drawn, truth, generator)
    return {
        "samples": f"{settings.n:,} full captions of each kind, {how}; judge {name}",
        **scores,
        "CLIP score": f"{cosines['drawn']:.3f} (real postcards {cosines['real']:.3f}, with the "
        f"captions of others {cosines['shuffled']:.3f})",
        "FID (judge features, not comparable with Inception FID)": (
            f"{frechet_distance(drawn, truth):.3f} (95 % interval {low:.3f} to {high:.3f}; "
            f"{2 * settings.n:,} samples)"
        ),
        "FID of their twins, real postcards of the same scenes": (
            f"{frechet_distance(other, truth):.3f}"
        ),
    }


def shares_of_right(title: str, judge: Classifier, right: Tensor, words: str) -> Scores:
    """Say how often all answers (n,questions) bool are right, and how often each is."""
    columns = {title: right.all(dim=1), **dict(zip(judge.heads, right.T, strict=True))}
    return {
        f"{name}, {words}": in_words(Accuracy(int(column.sum()), len(column)))
        for name, column in columns.items()
    }


def confused(labels: Tensor, answers: Tensor, worst: int = 5) -> str:
    """Name the subjects that are most often drawn as another: asked -> judged, how often."""
    names, asked, judged = ATTRIBUTES["subject"], labels[:, 0].tolist(), answers[:, 0].tolist()
    mistakes = Counter((a, b) for a, b in zip(asked, judged, strict=True) if a != b)
    return (
        "; ".join(
            f"{names[a]} -> {names[b]} {count}" for (a, b), count in mistakes.most_common(worst)
        )
        or "none"
    )


def retrieval(
    queries: Tensor, keys: Tensor, labels: Tensor, group: int
) -> tuple[Accuracy, Accuracy]:
    """Count the queries (n,d) that find their own key (n,d), and those that find one like it.

    Two scenes whose labels (n,k) agree have captions that are true of both.
    """
    found = retrieve(queries, keys, group)
    n = len(found)
    exact = found == torch.arange(n)
    same = (labels[found] == labels[:n]).all(dim=1)
    return Accuracy(int(exact.sum()), n), Accuracy(int(same.sum()), n)


def iou(found: Tensor, wanted: Tensor, seed: int) -> str:
    """Write the mean IoU of the LAYOUT of two maps (n,h,w), with its interval."""
    counts = overlaps(found, wanted, len(LAYERS))[:, : len(LAYOUT)]
    low, high = bootstrap_interval(mean_iou, counts, generator=torch.Generator().manual_seed(seed))
    return f"{mean_iou(counts):.4f} (95 % interval {low:.4f} to {high:.4f})"


def evaluate_postcards_segmenter(folder: Path, settings: EvaluationSettings) -> Scores:
    """Score a segmenter on unseen postcards: the mean IoU, and that of each label."""
    segmenter, scores = UNet.from_pretrained(folder), {}
    for split, words in SPLITS.items():
        data = Postcards(split, settings.n, seed=UNSEEN_SEED)
        found, wanted = segment(segmenter, data.images()), data.masks()
        scores[f"{MEAN_IOU}, {settings.n:,} postcards, {words}"] = iou(found, wanted, settings.seed)
        counts = overlaps(found, wanted, len(LAYERS))
        for label, name in enumerate(LAYERS):
            scores[f"IoU of {name}, {words}"] = f"{mean_iou(counts[:, label : label + 1]):.4f}"
    return scores


def evaluate_postcards_maps(folder: Path, settings: EvaluationSettings) -> Scores:
    """Score pictures drawn from n maps with their captions, from maps alone, from captions alone.

    A judge says whether they show what was asked; a map without words settles subject and place. A
    segmenter makes a map of each picture, to be compared with the one that was given.
    """
    name = settings.judge or POSTCARDS_JUDGE
    judge, segmenter = Classifier.from_pretrained(name), UNet.from_pretrained(POSTCARDS_SEGMENTER)
    vae, scores = MapPipeline.from_pretrained(folder).vae, {}
    for split, words in SPLITS.items():
        data = Postcards(split, settings.n, seed=UNSEEN_SEED)
        maps, decoded = data.masks(), reconstructed(vae, data.images())
        scores[f"real postcards, decoded: {MEAN_IOU}, {words}"] = iou(
            segment(segmenter, decoded), maps, settings.seed
        )
        for title, captions, given, settled in (
            ("map and caption", data.full_captions, maps, ("", *judge.heads)),
            ("map alone", [""] * settings.n, maps, ("subject", "place")),
            ("caption alone", data.full_captions, None, ("", *judge.heads)),
        ):
            drawn, how = draw(folder, settings, captions, given)
            right = classify(judge, drawn) == data.labels
            shares = shares_of_right(EVERYTHING, judge, right, words)
            for question in settled:
                question = f"{question or EVERYTHING}, {words}"
                scores[f"{title}: {question}"] = shares[question]
            found = segment(segmenter, drawn)
            scores[f"{title}: {MEAN_IOU}, {words}"] = iou(found, maps, settings.seed)
    return {"samples": f"{settings.n:,} of each kind, {how}; judge {name}", **scores}

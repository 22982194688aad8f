"""Chapters 6 to 12: the scores of the models of postcards, from the tokenizer to the pipeline."""

from collections import Counter
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from minisd.classifier import Classifier, classification_accuracies, classify
from minisd.clip import CLIP
from minisd.data.postcards import ATTRIBUTES, JUDGED, LAYERS, Postcards
from minisd.data.postcards.captions import prompts
from minisd.device import in_batches
from minisd.intervals import Accuracy
from minisd.lab.evaluation.settings import (
    FID,
    POSTCARDS_CLIP,
    POSTCARDS_JUDGE,
    POSTCARDS_SEGMENTER,
    PROMPT_ACCURACY,
    TOKENIZER,
    UNSEEN_SEED,
    EvaluationSettings,
    draw,
    unseen,
)
from minisd.lab.scores import Score, Scores, bootstrapped, mean, share, share_of
from minisd.metrics import (
    class_embeddings,
    clip_scores,
    frechet_distance,
    frechet_interval,
    psnr,
    retrieve,
    segment,
    ssim,
    zero_shot,
)
from minisd.quality import covered, edge_energy, psnr_inside, ratio_of_sums, two_sample_answers
from minisd.tokenizer import Tokenizer
from minisd.unet import UNet
from minisd.vae import AutoencoderKL

GROUP = 256  # among how many retrieval chooses
NEIGHBOURS = 1  # whose distance is the radius of a ball: in a judge's features the third nearest
# of a few hundred postcards often shows something else, and its balls leave nothing out
TOLD_APART = 1000  # the postcards of which a classifier must tell ours from real ones, at most


def evaluate_tokenizer(model: str | Path, settings: EvaluationSettings) -> Scores:
    """Score a tokenizer on unseen captions: their tokens, and how many decode to themselves."""
    tokenizer = Tokenizer.from_pretrained(model)
    size = Score(tokenizer.vocab_size, unit=" tokens", digits=0)
    scores: Scores = {"vocabulary": size}
    data = Postcards("held_out", settings.n, seed=UNSEEN_SEED)
    for name, captions in (("captions", data.captions), ("full captions", data.full_captions)):
        ids = [tokenizer.encode(caption) for caption in captions]
        lengths = torch.tensor([len(row) for row in ids], dtype=torch.float64)
        exact = sum(map(str.__eq__, map(tokenizer.decode, ids), captions))
        longest = f"a mean; at most {int(lengths.max())}"
        scores[f"tokens in unseen {name}"] = Score(
            float(lengths.mean()), n=settings.n, digits=1, note=longest
        )
        scores[f"{name} that decode to themselves"] = share(Accuracy(exact, settings.n))
    return scores


def evaluate_postcards_judge(model: str | Path, settings: EvaluationSettings) -> Scores:
    """Score a judge of postcards, question by question, on unseen scenes."""
    judge = Classifier.from_pretrained(model)
    scores: Scores = {}
    for name, data in unseen(settings.n):
        for question, accuracy in classification_accuracies(
            judge, data.images(), data.labels
        ).items():
            scores[f"{question}, {name}"] = share(accuracy)
    return scores


def evaluate_postcards_clip(model: str | Path, settings: EvaluationSettings) -> Scores:
    """Score a CLIP of postcards: zero-shot classification, and retrieval in both directions."""
    clip, tokenizer = CLIP.from_pretrained(model), Tokenizer.from_pretrained(TOKENIZER)
    scores: Scores = {}
    for name, data in unseen(settings.n):
        images = in_batches(clip.encode_image, data.images())
        texts = in_batches(clip.encode_text, tokenizer(data.full_captions))
        if bool((data.scenes.second > 0).all()):
            scores |= reads_order(clip, tokenizer, data, images, texts, name)
        else:
            for attribute in JUDGED:
                classes = class_embeddings(clip, tokenizer, prompts(attribute))
                scores[f"zero-shot {attribute}, {name}"] = share_of(
                    zero_shot(images, classes) == getattr(data.scenes, attribute)
                )
        group = min(GROUP, settings.n)
        for found, queries, keys in (("caption", images, texts), ("postcard", texts, images)):
            exact, same = retrieval(queries, keys, data.labels, group)
            scores[f"{found} found among {group} (recall@1), {name}"] = share(exact)
            scores[f"{found} found among {group}, all attributes right, {name}"] = share(same)
    return scores


def reads_order(
    clip: CLIP, tokenizer: Tokenizer, data: Postcards, images: Tensor, texts: Tensor, words: str
) -> Scores:
    """Score how often postcards of two subjects are nearer to their caption than to a false one.

    `images` and `texts` are the embeddings (n,d) of postcards and captions. The false captions have
    the same words in another order, with the colours or the sides exchanged; postcards whose
    subjects have one colour are left out of the first. Half are right by chance.
    """
    scores: Scores = {}
    own = (images * texts).sum(dim=1)
    for what in ("colours", "sides"):
        false = in_batches(clip.encode_text, tokenizer(data.exchanged_captions(what)))
        differ = (data.scenes.second_colour != data.scenes.colour + 1) | (what == "sides")
        better = (own > (images * false).sum(dim=1))[differ]
        scores[f"caption preferred to that with {what} exchanged, {words}"] = share_of(better)
    return scores


def retrieval(
    queries: Tensor, keys: Tensor, labels: Tensor, group: int
) -> tuple[Accuracy, Accuracy]:
    """Count the queries (n,d) that find their own key (n,d), and those that find an equivalent one.

    Two scenes with the same labels (n,k) are equivalent: the caption of one is true of the other.
    """
    found = retrieve(queries, keys, group)
    n = len(found)
    exact = found == torch.arange(n)
    same = (labels[found] == labels[:n]).all(dim=1)
    return Accuracy(int(exact.sum()), n), Accuracy(int(same.sum()), n)


def evaluate_postcards_vae(model: str | Path, settings: EvaluationSettings) -> Scores:
    """Score an autoencoder on unseen postcards: PSNR and SSIM, what a judge sees, and `quality`."""
    witness = Classifier.from_pretrained(settings.witness) if settings.witness else None
    judge = Classifier.from_pretrained(settings.judge or POSTCARDS_JUDGE)
    vae = AutoencoderKL.from_pretrained(model)
    scores: Scores = {}
    for name, data in unseen(settings.n):
        images = data.images()
        spread = float(in_batches(vae.encode, images).std())
        scores["standard deviation of the latents"] = Score(spread, n=settings.n, digits=3)
        decoded = reconstructed(vae, images)
        decibels, similarity = psnr(decoded, images), ssim(decoded, images)
        scores[f"PSNR, {name}"] = mean(decibels, 2, " dB")
        scores[f"SSIM, {name}"] = mean(similarity, 4)
        right = classify(judge, decoded) == data.labels
        scores |= shares_of_right("judged right in every attribute", judge, right, name)
        scores |= quality(decoded, data, judge, name, settings.seed, witness=witness)
    return scores


def reconstructed(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Encode and decode images (n,3,h,w) in [-1,1], and return what comes back."""
    return in_batches(lambda batch: vae.decode(vae.encode(batch)).clamp(-1, 1), images)


def evaluate_postcards(model: str | Path, settings: EvaluationSettings) -> Scores:
    """Score text to image: a picture for each of n full captions, seen and held-out each.

    A judge says whether a picture shows what was asked. FID compares all of them with the real
    postcards of these captions, and for comparison the twins of those postcards with them. The CLIP
    score is the cosine of picture and caption, here also of real postcards with their own captions
    and with those of others. The rest is `quality`.
    """
    witness = Classifier.from_pretrained(settings.witness) if settings.witness else None
    segmenter = UNet.from_pretrained(POSTCARDS_SEGMENTER)
    name = settings.judge or POSTCARDS_JUDGE
    judge, clip = Classifier.from_pretrained(name), CLIP.from_pretrained(POSTCARDS_CLIP)
    tokenizer = Tokenizer.from_pretrained(TOKENIZER)
    scores: Scores = {}
    pictures, real, twins, groups = [], [], [], []
    cosines: dict[str, list[Tensor]] = {"": [], ", real postcards": [], ", captions of others": []}
    for words, data in unseen(settings.n):
        images, how = draw(model, settings, data.full_captions)
        scores["samples"] = f"{settings.n:,} full captions of each kind, {how}; judge {name}"
        answers = classify(judge, images)
        right = answers == data.labels
        scores |= shares_of_right(PROMPT_ACCURACY, judge, right, words)
        scores[f"subjects most often mistaken, {words}"] = confused(data.labels, answers)
        scores |= quality(images, data, judge, words, settings.seed, segmenter, witness)
        pictures.append(images)
        real.append(data.images())
        twins.append(data.twins())
        groups.append(clusters(data))
        captions = data.full_captions
        others = captions[-1:] + captions[:-1]
        pairs = ((images, captions), (real[-1], captions), (real[-1], others))
        for found, pair in zip(cosines.values(), pairs, strict=True):
            found.append(clip_scores(clip, tokenizer, *pair))
    drawn, truth, other = (
        in_batches(judge.features, torch.cat(images)) for images in (pictures, real, twins)
    )
    generator = torch.Generator().manual_seed(settings.seed)
    interval = frechet_interval(drawn, truth, generator, torch.cat(groups))
    for kind, found in cosines.items():
        scores[f"CLIP score{kind}"] = mean(torch.cat(found), 3)
    return scores | {
        FID: Score(frechet_distance(drawn, truth), *interval, n=len(drawn), digits=3),
        "FID of their twins, real postcards of the same scenes": Score(
            frechet_distance(other, truth), n=len(other), digits=3
        ),
    }


def quality(
    images: Tensor,
    data: Postcards,
    judge: Classifier,
    words: str,
    seed: int = 0,
    segmenter: UNet | None = None,
    witness: Classifier | None = None,
) -> Scores:
    """Score how much pictures (n,3,h,w) in [-1,1] of the scenes of a data set look like real ones.

    Without a segmenter they are reconstructions of its postcards, pixel by pixel, and the subject
    is where the map of a postcard says; the PSNR there is scored, too. With one they were drawn
    from captions, which leave open where and how large the subject is: then it is where the
    segmenter sees it, in drawn pictures, real ones and twins alike.

    Beside each score is that of the twins, which share more with the postcards than a caption says
    (scale, companion, trees). Edges are compared with those of the postcards. The distribution of
    the pictures is compared with the twins, of which none was made, and that of the twins with the
    postcards: in the features of the judge, of the witness if there is one, and by a classifier
    that learns to tell them apart (50 % is the best value). Intervals resample `clusters`; those of
    precision and recall take the other cloud as it is. Raises ValueError for fewer than two
    clusters.
    """
    real, twins, groups = data.images(), data.twins(), clusters(data)
    if segmenter is None:
        maps = [data.masks(), data.masks(), data.twin_masks()]
    else:
        maps = [segment(segmenter, each) for each in (images, real, twins)]
    ours_in, real_in, twins_in = (each == LAYERS.index("subject") for each in maps)
    networks = {"judge": judge} | ({"witness": witness} if witness else {})
    scores: Scores = {}
    for kind, shown, others, inside in (
        ("", images, twins, ours_in),
        (", twins", twins, real, twins_in),
    ):
        title = f"{kind}, {words}"
        for where, masks in (("", (None, None)), (" on the subject", (inside, real_in))):
            energies = map(edge_energy, (shown, real), masks)
            scores[f"edge energy kept{where}{title}"] = bootstrapped(
                ratio_of_sums, torch.stack([*energies], dim=1), 1, "%", groups
            )
        if segmenter is None:
            decibels = psnr_inside(shown, real, real_in)
            scores[f"PSNR on the subject{title}"] = mean(decibels, 2, " dB", groups)
        for name, network in networks.items():
            a, b = (in_batches(network.features, each) for each in (shown, others))
            of, generator = f", features of the {name}{title}", torch.Generator().manual_seed(seed)
            interval = frechet_interval(a, b, generator, groups)
            count = len(groups.unique())
            scores[f"FID{of}"] = Score(frechet_distance(a, b), *interval, len(a), count, digits=3)
            for measure, pair in (("precision", (a, b)), ("recall", (b, a))):
                inside_cloud = covered(*pair, NEIGHBOURS).double()
                scores[f"{measure}{of}"] = mean(inside_cloud, 1, "%", groups)
        few, generator = slice(TOLD_APART), torch.Generator().manual_seed(seed)
        right, rows = two_sample_answers(shown[few], others[few], groups[few], generator)
        scores[f"told from real postcards by a classifier{title}"] = mean(
            right.double(), 1, "%", groups[few][rows]
        )
    return scores


def clusters(data: Postcards) -> Tensor:
    """Return the cluster (n,) int64 of each postcard: what a split keeps or holds out as a whole.

    That is a combination of subject, colour and sky, or of two subjects the pair. It has the same
    number in every data set.
    """
    scenes = data.scenes
    alone = torch.stack([scenes.subject, scenes.colour, scenes.sky], dim=1)
    pair = torch.stack([scenes.subject, scenes.second - 1], dim=1).sort(dim=1).values
    pair = F.pad(pair, (0, 1), value=len(ATTRIBUTES["sky"]))  # a sky that none has alone
    return pair.where(scenes.second[:, None] > 0, alone) @ torch.tensor([256, 16, 1])


def shares_of_right(title: str, judge: Classifier, right: Tensor, words: str) -> Scores:
    """Return how often all answers (n,questions) bool are right at once, and how often each is."""
    columns = {title: right.all(dim=1), **dict(zip(judge.heads, right.T, strict=True))}
    return {f"{name}, {words}": share_of(column) for name, column in columns.items()}


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

import math
import re
import zlib
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from helpers import randomise, tiny_pipeline

from minisd import AutoencoderKL, DDIMScheduler, UNet, UNetConfig, VAEConfig
from minisd.classifier import Classifier, ClassifierConfig
from minisd.data.digits import uci_digits
from minisd.data.postcards import Postcards
from minisd.device import in_batches
from minisd.lab.artist import Artist
from minisd.lab.evaluation import (
    FID,
    PROMPT_ACCURACY,
    SECONDS,
    EvaluationSettings,
    evaluate_digits,
    evaluate_postcards,
    evaluate_postcards_maps,
    evaluate_postcards_segmenter,
    evaluate_postcards_vae,
    score_digits,
    speed,
)
from minisd.lab.evaluation.maps import iou
from minisd.lab.evaluation.postcards import (
    clusters,
    confused,
    quality,
    reads_order,
    shares_of_right,
)
from minisd.lab.scoreboard import HEADLINES
from minisd.maps import MapPipeline
from minisd.metrics import frechet_distance
from minisd.quality import edge_energy

FEW = EvaluationSettings(n=6, steps=2)
ONE = ClassifierConfig(channels=(8, 8), num_features=6)
SEGMENTER = UNetConfig(64, 3, 4, (8, 8), (False, False), 1, 2, 4)
TWO = Classifier(ClassifierConfig(3, (8, 8), 8, (("subject", 12), ("sky", 4))))


@pytest.fixture(autouse=True)
def short_training(monkeypatch):
    """Of the classifier that tells pictures from real ones."""
    monkeypatch.setattr("minisd.quality.EPOCHS", 1)


def test_shares_of_right_answers_are_counted_together_and_apart():
    right = torch.tensor([[True, True], [True, False], [False, True], [True, True]])
    scores = shares_of_right("all", TWO, right, "seen")
    assert list(scores) == ["all, seen", "subject, seen", "sky, seen"]
    assert [(score.value, score.n) for score in scores.values()] == [(0.5, 4), (0.75, 4), (0.75, 4)]


def test_mistaken_subjects_are_named_the_most_frequent_first():
    asked = torch.tensor([[0, 9], [0, 9], [1, 9], [2, 9], [2, 9]])
    judged = torch.tensor([[3, 9], [3, 9], [1, 8], [0, 9], [2, 9]])
    assert confused(asked, judged) == "temple -> lighthouse 2; castle -> temple 1"
    assert confused(asked, asked) == "none"


def test_an_autoencoder_that_gives_back_what_it_got_has_perfect_scores(tmp_path, monkeypatch):
    config = VAEConfig(64, 3, 4, (8, 8), 1, 4, patch_size=4)
    randomise(AutoencoderKL(config), torch.Generator().manual_seed(0)).save_pretrained(tmp_path)
    scores = evaluate_postcards_vae(tmp_path, FEW)
    assert scores["judged right in every attribute, seen combinations"].value < 1
    monkeypatch.setattr(AutoencoderKL, "encode", lambda self, images: images)
    monkeypatch.setattr(AutoencoderKL, "decode", lambda self, images: images)
    scores = evaluate_postcards_vae(tmp_path, FEW)
    assert scores["judged right in every attribute, seen combinations"].value == 1
    similarity = scores["SSIM, seen combinations"]
    assert str(similarity) == "1.0000 (95 % interval 1.0000 to 1.0000; n = 6)"


def test_another_judge_can_be_asked(tmp_path):
    with pytest.raises(ValueError, match="no-such-judge"):
        evaluate_postcards_vae(tmp_path, replace(FEW, judge="no-such-judge"))


def test_one_picture_is_timed_if_the_model_draws(tmp_path, monkeypatch):
    prompts = []
    drawn = Artist.draw
    monkeypatch.setattr(
        Artist, "draw", lambda self, p, *rest: prompts.append(p) or drawn(self, p, *rest)
    )
    tiny_pipeline().save_pretrained(tmp_path / "words")
    times = speed(tmp_path / "words", FEW)
    how = r"one alone, 2 steps of dpm-solver\+\+; median of 5; .*CPU"
    assert re.fullmatch(how, times[SECONDS].note) and list(times) == [SECONDS]
    assert times[SECONDS].value > 0
    assert prompts == [["a temple at sunset"]] * 6  # the first is to warm up
    TWO.save_pretrained(tmp_path / "judge")
    assert speed(tmp_path / "judge", FEW) == {}


@pytest.mark.parametrize(("context_dim", "example"), [(None, None), (10, "0")])
def test_a_model_of_digits_is_timed_with_what_it_can_read(tmp_path, context_dim, example):
    config = UNetConfig(14, channels=(8, 8), attention=(False, False), context_dim=context_dim)
    UNet(config).save_pretrained(tmp_path)
    DDIMScheduler().save_pretrained(tmp_path)
    assert Artist(str(tmp_path)).example == example
    assert "2 steps of ddim" in speed(tmp_path, FEW)[SECONDS].note


def test_real_postcards_have_the_best_scores_that_can_be(tmp_path, monkeypatch):
    tiny_pipeline().save_pretrained(tmp_path)
    splits = iter(("test", "held_out"))

    def real(folder, settings, prompts):
        data = Postcards(next(splits), settings.n, seed=7)
        assert prompts == data.full_captions
        return data.images(), "as they are"

    monkeypatch.setattr("minisd.lab.evaluation.postcards.draw", real)
    scores = evaluate_postcards(tmp_path, FEW)
    for words in ("seen", "held-out"):
        assert scores[f"{PROMPT_ACCURACY}, {words} combinations"].value == 1
        assert scores[f"subjects most often mistaken, {words} combinations"] == "none"
    drawn, real_, shuffled = (
        scores[f"CLIP score{of}"].value for of in ("", ", real postcards", ", captions of others")
    )
    assert drawn == real_ > shuffled + 0.2
    twins = scores["FID of their twins, real postcards of the same scenes"]
    assert scores[FID].value == pytest.approx(0, abs=1e-9)
    assert scores[FID].low == 0 < scores[FID].high
    assert scores[FID].n == twins.n == 12 and twins.value > 0.01


# Quality

JUDGE = Classifier(ClassifierConfig(3, (8, 8), 8, (("subject", 12), ("sky", 4)))).eval()
MEASURES = (
    "edge energy kept", "edge energy kept on the subject", "FID, features of the judge",
    "precision, features of the judge", "recall, features of the judge",
    "told from real postcards by a classifier",
)  # fmt: skip


def test_a_cluster_is_what_a_split_holds_out():
    data = Postcards("test", 300, two=0.5)
    keys = []
    for scene in data.scenes:
        pair = tuple(sorted((scene.subject, scene.second)))
        keys.append(pair if scene.second != "none" else (scene.subject, scene.colour, scene.sky))
    found = clusters(data).tolist()
    assert len(set(zip(keys, found, strict=True))) == len(set(keys)) == len(set(found))
    assert 50 < len(set(found)) < 250
    for other in (Postcards("test", 300), Postcards("held_out", 300, two=0.5)):
        numbers = dict(zip(found, keys, strict=True))
        for number, scene in zip(clusters(other).tolist(), other.scenes, strict=True):
            if scene.second == "none" and number in numbers:
                assert numbers[number] == (scene.subject, scene.colour, scene.sky)
    assert not set(clusters(Postcards("held_out", 300)).tolist()) & set(found)


@pytest.mark.parametrize("two", [0.0, 0.5])
def test_postcards_that_were_not_changed_have_all_their_quality(two):
    data = Postcards("test", 24, seed=7, size=32, two=two)
    scores = quality(data.images(), data, JUDGE, "these")
    measures = (*MEASURES, "PSNR on the subject")
    assert scores.keys() == {f"{name}{of}, these" for name in measures for of in ("", ", twins")}
    for name in MEASURES[:2]:
        kept = scores[f"{name}, these"]
        assert kept.value == kept.low == kept.high == pytest.approx(1)
        twins = scores[f"{name}, twins, these"]
        assert 0.5 < twins.low < twins.value < twins.high < 2 and twins.value != 1
    assert scores["PSNR on the subject, these"].value == math.inf
    assert 5 < scores["PSNR on the subject, twins, these"].value < 25
    for of in ("", ", twins"):  # the same two sets of pictures, in both orders
        assert scores[f"FID, features of the judge{of}, these"].value == pytest.approx(
            scores["FID, features of the judge, these"].value
        )
    precision, recall = (f"{name}, features of the judge" for name in ("precision", "recall"))
    assert scores[f"{precision}, these"].value == scores[f"{recall}, twins, these"].value
    assert scores[f"{recall}, these"].value == scores[f"{precision}, twins, these"].value
    groups = len(clusters(data).unique())
    assert {score.clusters for name, score in scores.items() if "told" not in name} == {groups}
    told = scores["told from real postcards by a classifier, these"]
    assert told.clusters == groups - groups // 2


def test_a_blur_costs_quality(monkeypatch):
    monkeypatch.setattr("minisd.quality.EPOCHS", 12)
    data = Postcards("test", 80, seed=7, size=32)
    ours = torch.nn.functional.avg_pool2d(data.images(), 5, stride=1, padding=2)
    scores = quality(ours, data, JUDGE, "these", witness=TWO.eval())
    value = {name.removesuffix(", these"): score.value for name, score in scores.items()}
    assert value["edge energy kept"] < 0.4 > value["edge energy kept on the subject"]
    assert value["PSNR on the subject"] > value["PSNR on the subject, twins"] + 2
    real, twins = data.images(), data.twins()
    ours_edges, theirs = (
        edge_energy(images, maps == 2).sum().item()
        for images, maps in ((twins, data.twin_masks()), (real, data.masks()))
    )
    assert value["edge energy kept on the subject, twins"] == pytest.approx(ours_edges / theirs)
    for name, network in (("judge", JUDGE), ("witness", TWO)):
        a, b, c = (in_batches(network.features, each) for each in (ours, twins, real))
        fid = f"FID, features of the {name}"
        assert value[fid] == pytest.approx(frechet_distance(a, b))
        assert value[f"{fid}, twins"] == pytest.approx(frechet_distance(b, c))
    told = "told from real postcards by a classifier"
    assert value[told] > 0.8 > 0.7 > value[f"{told}, twins"]
    assert len(scores) == 2 * (len(MEASURES) + 1 + 3)


def test_one_picture_drawn_again_and_again_is_precise_and_recalls_itself():
    data = Postcards("test", 24, seed=7, size=32)
    scores = quality(data.twins([5] * 24), data, JUDGE, "these")
    assert scores["precision, features of the judge, these"].value == 1
    assert scores["recall, features of the judge, these"].value == pytest.approx(1 / 24)


def test_the_subject_of_a_drawn_postcard_is_where_a_segmenter_sees_it(monkeypatch):
    """Its subject is real, all else is grey: whole edges are lost, and none on the subject."""
    data = Postcards("test", 24, seed=7, size=32)
    there = data.masks() == 2
    drawn = data.images() * there[:, None]
    asked = []

    def segment(segmenter, images):
        asked.append(images)
        return data.masks() if len(asked) < 3 else data.twin_masks()

    monkeypatch.setattr("minisd.lab.evaluation.postcards.segment", segment)
    scores = quality(drawn, data, JUDGE, "these", segmenter=UNet(SEGMENTER))
    expected = drawn, data.images(), data.twins()
    assert all(torch.equal(a, b) for a, b in zip(asked, expected, strict=True))
    assert scores["edge energy kept on the subject, these"].value == pytest.approx(1)
    assert scores["edge energy kept, these"].value != pytest.approx(1, abs=0.05)
    assert not any("PSNR" in name for name in scores)


def test_a_single_postcard_has_no_quality():
    data = Postcards("test", 1)
    with pytest.raises(ValueError, match="at least 2"):
        quality(data.images(), data, JUDGE, "these")


@pytest.mark.slow
def test_a_pipeline_is_scored_from_its_folder(tmp_path):
    pipe = tiny_pipeline()
    pipe.unet.config = replace(pipe.unet.config, sample_size=16)  # 64 x 64 pixels
    pipe.save_pretrained(tmp_path)
    scores = evaluate_postcards(tmp_path, FEW)
    assert scores["samples"].startswith("6 full captions of each kind, seed 0, 2 steps of dpm")
    assert scores[f"{PROMPT_ACCURACY}, seen combinations"].value < 1
    assert evaluate_postcards(tmp_path, FEW) == scores


# Maps


def map_of(data):
    """A function that finds the map of any picture of this data set, by looking it up."""

    def segment(segmenter, images):
        nearest = torch.cdist(images.flatten(1), data.images().flatten(1)).argmin(dim=1)
        return data.masks()[nearest]

    return segment


def test_the_iou_counts_the_large_things():
    maps = Postcards("test", 4).masks()
    assert str(iou(maps, maps, 0)) == "1.0000 (95 % interval 1.0000 to 1.0000; n = 4)"
    without = maps.masked_fill(maps == 3, 2)  # companions taken for subjects
    assert 0.5 < iou(without, maps, 0).value < 1


def test_a_segmenter_is_scored_label_by_label(tmp_path, monkeypatch):
    UNet(SEGMENTER).save_pretrained(tmp_path)
    scores = evaluate_postcards_segmenter(tmp_path, FEW)
    assert scores["IoU of companions, seen combinations"].value < 0.5
    splits = iter(("test", "held_out"))
    monkeypatch.setattr(
        "minisd.lab.evaluation.maps.segment", lambda *_: Postcards(next(splits), 6, seed=7).masks()
    )
    scores = evaluate_postcards_segmenter(tmp_path, FEW)
    assert len(scores) == 10
    assert set(HEADLINES["postcards-segmenter"].values()) <= scores.keys()
    assert all(score.value == 1 for score in scores.values())


@pytest.mark.slow
def test_a_painter_of_maps_is_scored_with_and_without_words(tmp_path, monkeypatch):
    pipe = tiny_pipeline(MapPipeline, extra_channels=64)
    pipe.unet.config = replace(pipe.unet.config, sample_size=16)  # 64 x 64 pixels
    pipe.save_pretrained(tmp_path / "maps")
    UNet(SEGMENTER).save_pretrained(tmp_path / "segmenter")
    monkeypatch.setattr(
        "minisd.lab.evaluation.maps.POSTCARDS_SEGMENTER", str(tmp_path / "segmenter")
    )
    scores = evaluate_postcards_maps(tmp_path / "maps", FEW)
    assert scores["samples"].startswith("6 of each kind, seed 0, 2 steps of dpm")
    for words in ("seen", "held-out"):
        for title, questions in (("map and caption", 6), ("map alone", 2), ("caption alone", 6)):
            own = [
                name
                for name in scores
                if name.startswith(title) and words in name and "IoU" not in name
            ]
            assert len(own) == questions, own
        assert sum("IoU" in name and words in name for name in scores) == 4
    assert set(HEADLINES["postcards-maps"].values()) <= scores.keys()
    assert evaluate_postcards_maps(tmp_path / "maps", FEW) == scores


def test_real_postcards_are_what_their_maps_say(tmp_path, monkeypatch):
    tiny_pipeline(MapPipeline, extra_channels=64).save_pretrained(tmp_path / "maps")
    UNet(SEGMENTER).save_pretrained(tmp_path / "segmenter")
    data, asked = Postcards("test", 6, seed=7), []

    def draw(self, prompts, n, steps, generator, guidance, maps=None):
        asked.append((prompts, maps is not None))
        yield data.images()

    monkeypatch.setattr(
        "minisd.lab.evaluation.maps.POSTCARDS_SEGMENTER", str(tmp_path / "segmenter")
    )
    monkeypatch.setattr("minisd.lab.evaluation.settings.SPLITS", {"test": "these"})
    monkeypatch.setattr("minisd.lab.evaluation.settings.Artist.draw", draw)
    monkeypatch.setattr("minisd.lab.evaluation.maps.segment", map_of(data))
    monkeypatch.setattr(AutoencoderKL, "encode", lambda self, images: images)
    monkeypatch.setattr(AutoencoderKL, "decode", lambda self, images: images)
    scores = evaluate_postcards_maps(tmp_path / "maps", FEW)
    words, nothing = data.full_captions, [""] * 6
    assert asked == [(words, True), (nothing, True), (words, False)]
    del scores["samples"]
    assert len(scores) == 18
    assert all(score.value == 1 for score in scores.values())


# Digits


def test_scores_of_real_digits_against_themselves(generator):
    judge = Classifier(ONE).eval()
    real = torch.rand(80, 1, 28, 28, generator=generator) * 2 - 1
    scores = score_digits(judge, real, real, real, generator)
    assert scores.n == 80
    assert scores.fid == pytest.approx(0, abs=1e-12)
    assert scores.fid_real == pytest.approx(0, abs=1e-12)  # the same 80 in another order
    assert scores.confidence == pytest.approx(scores.confidence_real)
    low, high = scores.fid_interval
    assert low == 0 < high  # resampling alone raises every distance: the plain bootstrap misses 0
    assert sum(scores.class_shares) == pytest.approx(1) and len(scores.class_shares) == 10


def test_noise_scores_worse_than_real_digits(generator):
    judge = Classifier(ONE).eval()
    real = torch.zeros(120, 1, 28, 28)
    real[:, :, 8:20, 8:20] = torch.rand(120, 1, 12, 12, generator=generator)
    noise = torch.randn(60, 1, 28, 28, generator=generator)
    scores = score_digits(judge, noise, real[:60], real[60:], generator)
    assert scores.fid > 10 * scores.fid_real > 0
    low, high = scores.fid_interval
    assert scores.fid_real < low < scores.fid < high


def test_class_balance_is_an_entropy():
    class Fixed(Classifier):
        def features(self, images):
            return images.flatten(1)[:, :10]

    judge = Fixed(ClassifierConfig(channels=(8,), num_features=10)).eval()
    with torch.no_grad():
        judge.heads["digit"].weight.copy_(100 * torch.eye(10))
        judge.heads["digit"].bias.zero_()

    def images(labels):
        x = torch.zeros(len(labels), 1, 4, 4)
        x.flatten(1)[torch.arange(len(labels)), torch.tensor(labels)] = 1
        return x + 0.01 * torch.randn(x.shape)

    everything = images([*range(10)] * 4)
    even = score_digits(judge, everything, everything, everything)
    assert even.class_balance == pytest.approx(1)
    assert even.class_shares == pytest.approx((0.1,) * 10)
    assert even.confidence > 0.99
    halves = score_digits(judge, images([3, 7] * 20), everything, everything)
    assert halves.class_shares[3] == halves.class_shares[7] == 0.5
    assert halves.class_balance == pytest.approx(math.log(2) / math.log(10))
    one = score_digits(judge, images([5] * 40), everything, everything)
    assert one.class_balance == 0


def test_more_samples_than_real_digits_raise():
    real = torch.zeros(5, 1, 28, 28)
    with pytest.raises(ValueError, match="6 samples need as many real digits, got 5 and 9"):
        score_digits(Classifier(ONE), torch.zeros(6, 1, 28, 28), real, torch.zeros(9, 1, 28, 28))


def test_the_scores_of_digits_are_those_of_score_digits(tmp_path, monkeypatch):
    real = uci_digits("test")
    Classifier(ONE).save_pretrained(tmp_path)
    settings = EvaluationSettings(n=20, judge=str(tmp_path))
    monkeypatch.setattr("minisd.lab.evaluation.digits.digits", lambda split: real)
    monkeypatch.setattr(
        "minisd.lab.evaluation.digits.draw", lambda *_: (-real.images[:20], "upside down")
    )
    scores = evaluate_digits(tmp_path, settings)
    assert scores["samples"] == f"20, upside down; judge {tmp_path}; against {real.source}"
    assert scores[FID].low < scores[FID].value < scores[FID].high
    ratio = scores[FID].value / scores["FID of real training digits"].value
    assert scores["FID ratio"].value == ratio
    assert all(score.n == 20 for name, score in scores.items() if name != "samples")


def embeddings(texts, order):
    """Return a direction (n,64) for each text, or for its bag of words."""
    rows = []
    for text in texts:
        seed = zlib.crc32((text if order else " ".join(sorted(text.split()))).encode())
        rows.append(torch.randn(64, generator=torch.Generator().manual_seed(seed)))
    return F.normalize(torch.stack(rows), dim=1)


@pytest.mark.parametrize(("order", "share"), [(True, 1.0), (False, 0.0)])
def test_a_bag_of_words_does_not_read_order(order, share):
    """It has the same place for a caption and for its words in another order."""
    data, texts = Postcards("test", 60, seed=7, two=1.0), []
    differ = data.scenes.second_colour != data.scenes.colour + 1

    def tokenizer(captions):
        texts[:] = captions
        return torch.arange(len(captions))

    clip = SimpleNamespace(encode_text=lambda ids: embeddings([texts[i] for i in ids], order))
    own = embeddings(data.full_captions, order)
    scores = reads_order(clip, tokenizer, data, own, own, "these")
    found = [(score.value, score.n) for score in scores.values()]
    assert found == [(share, int(differ.sum())), (share, 60)]
    assert 40 < differ.sum() < 60

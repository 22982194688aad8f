import fnmatch
import re
from dataclasses import replace

import pytest
import torch
from helpers import randomise, tiny_pipeline

from minisd import AutoencoderKL, DDIMScheduler, UNet, UNetConfig, VAEConfig
from minisd.classifier import Classifier, ClassifierConfig
from minisd.data.postcards import Postcards
from minisd.lab.artist import Artist
from minisd.lab.evaluation import (
    SECONDS,
    EvaluationSettings,
    confused,
    evaluate_postcards,
    evaluate_postcards_maps,
    evaluate_postcards_segmenter,
    evaluate_postcards_vae,
    iou,
    mean_in_words,
    shares_of_right,
    speed,
)
from minisd.lab.scoreboard import HEADLINES
from minisd.maps import MapPipeline

FEW = EvaluationSettings(n=6, steps=2)
TWO = Classifier(ClassifierConfig(3, (8, 8), 8, (("subject", 12), ("sky", 4))))


def share(scores, start):
    """The one share among the scores whose name starts so."""
    (value,) = (text for name, text in scores.items() if name.startswith(start))
    return float(re.match(r"([\d.]+)%", value)[1])


def test_shares_of_right_answers_are_counted_together_and_apart():
    right = torch.tensor([[True, True], [True, False], [False, True], [True, True]])
    scores = shares_of_right("all", TWO, right, "seen")
    assert list(scores) == ["all, seen", "subject, seen", "sky, seen"]
    assert [share(scores, name) for name in ("all", "subject", "sky")] == [50, 75, 75]


def test_mistaken_subjects_are_named_the_most_frequent_first():
    asked = torch.tensor([[0, 9], [0, 9], [1, 9], [2, 9], [2, 9]])
    judged = torch.tensor([[3, 9], [3, 9], [1, 8], [0, 9], [2, 9]])
    assert confused(asked, judged) == "temple -> lighthouse 2; castle -> temple 1"
    assert confused(asked, asked) == "none"


def test_an_autoencoder_that_gives_back_what_it_got_has_perfect_scores(tmp_path, monkeypatch):
    config = VAEConfig(64, 3, 4, (8, 8), 1, 4, patch_size=4)
    randomise(AutoencoderKL(config), torch.Generator().manual_seed(0)).save_pretrained(tmp_path)
    scores = evaluate_postcards_vae(tmp_path, FEW)
    assert share(scores, "judged right in every attribute, seen") < 100
    monkeypatch.setattr(AutoencoderKL, "encode", lambda self, images: images)
    monkeypatch.setattr(AutoencoderKL, "decode", lambda self, images: images)
    scores = evaluate_postcards_vae(tmp_path, FEW)
    assert share(scores, "judged right in every attribute, seen") == 100
    similarity = scores["SSIM, 6 postcards, seen combinations"]
    assert similarity == "1.0000 (95 % interval 1.0000 to 1.0000)"


def test_another_judge_can_be_asked(tmp_path):
    with pytest.raises(ValueError, match="no-such-judge"):
        evaluate_postcards_vae(tmp_path, replace(FEW, judge="no-such-judge"))


def test_a_mean_is_told_with_its_interval():
    words = mean_in_words(torch.tensor([1.0, 2.0, 3.0, 4.0] * 100), 2, " dB")
    assert words.startswith("2.50 dB (95 % interval 2.") and words.endswith(")")
    low, high = map(float, re.findall(r"\d\.\d\d", words)[1:])
    assert high - low == pytest.approx(2 * 1.96 * 1.118 / 20, rel=0.2)


def test_one_picture_is_timed_if_the_model_draws(tmp_path, monkeypatch):
    prompts = []
    drawn = Artist.draw
    monkeypatch.setattr(
        Artist, "draw", lambda self, p, *rest: prompts.append(p) or drawn(self, p, *rest)
    )
    tiny_pipeline().save_pretrained(tmp_path / "words")
    times = speed(tmp_path / "words", FEW)
    how = r"\d+\.\d\d \(one alone, 2 steps of dpm-solver\+\+; median of 5; .*CPU\)"
    assert re.fullmatch(how, times[SECONDS]) and list(times) == [SECONDS]
    assert prompts == [["a temple at sunset"]] * 6  # the first is to warm up
    TWO.save_pretrained(tmp_path / "judge")
    assert speed(tmp_path / "judge", FEW) == {}


@pytest.mark.parametrize(("context_dim", "example"), [(None, None), (10, "0")])
def test_a_model_of_digits_is_timed_with_what_it_can_read(tmp_path, context_dim, example):
    config = UNetConfig(14, channels=(8, 8), attention=(False, False), context_dim=context_dim)
    UNet(config).save_pretrained(tmp_path)
    DDIMScheduler().save_pretrained(tmp_path)
    assert Artist(str(tmp_path)).example == example
    assert "2 steps of ddim" in speed(tmp_path, FEW)[SECONDS]


def test_real_postcards_have_the_best_scores_that_can_be(tmp_path, monkeypatch):
    tiny_pipeline().save_pretrained(tmp_path)
    splits = iter(("test", "held_out"))

    def real(folder, settings, prompts):
        data = Postcards(next(splits), settings.n, seed=7)
        assert prompts == data.full_captions
        return data.images(), "as they are"

    monkeypatch.setattr("minisd.lab.evaluation.draw", real)
    scores = evaluate_postcards(tmp_path, FEW)
    for words in ("seen", "held-out"):
        assert share(scores, f"prompt accuracy, all attributes, {words}") == 100
        assert scores[f"subjects most often mistaken, {words} combinations"] == "none"
    drawn, real_, shuffled = map(float, re.findall(r"-?\d\.\d+", scores["CLIP score"]))
    assert drawn == real_ > shuffled + 0.2
    (fid,) = (text for name, text in scores.items() if name.startswith("FID (judge"))
    (twins,) = (text for name, text in scores.items() if name.startswith("FID of their twins"))
    assert abs(float(fid.split()[0])) < 0.01 < float(twins)


@pytest.mark.slow
def test_a_pipeline_is_scored_from_its_folder(tmp_path):
    pipe = tiny_pipeline()
    pipe.unet.config = replace(pipe.unet.config, sample_size=16)  # 64 x 64 pixels
    pipe.save_pretrained(tmp_path)
    scores = evaluate_postcards(tmp_path, FEW)
    assert scores["samples"].startswith("6 full captions of each kind, seed 0, 2 steps of dpm")
    assert share(scores, "prompt accuracy, all attributes, seen") < 100
    assert evaluate_postcards(tmp_path, FEW) == scores


# Maps

SEGMENTER = UNetConfig(64, 3, 4, (8, 8), (False, False), 1, 2, 4)


def map_of(data):
    """A function that finds the map of any picture of this data set, by looking it up."""

    def segment(segmenter, images):
        nearest = torch.cdist(images.flatten(1), data.images().flatten(1)).argmin(dim=1)
        return data.masks()[nearest]

    return segment


def test_the_iou_counts_the_large_things():
    maps = Postcards("test", 4).masks()
    assert iou(maps, maps, 0) == "1.0000 (95 % interval 1.0000 to 1.0000)"
    without = maps.masked_fill(maps == 3, 2)  # companions taken for subjects
    value = float(iou(without, maps, 0).split()[0])
    assert 0.5 < value < 1


def test_a_segmenter_is_scored_label_by_label(tmp_path, monkeypatch):
    UNet(SEGMENTER).save_pretrained(tmp_path)
    scores = evaluate_postcards_segmenter(tmp_path, FEW)
    assert float(scores["IoU of companions, seen combinations"]) < 0.5
    splits = iter(("test", "held_out"))
    monkeypatch.setattr(
        "minisd.lab.evaluation.segment", lambda *_: Postcards(next(splits), 6, seed=7).masks()
    )
    scores = evaluate_postcards_segmenter(tmp_path, FEW)
    assert len(scores) == 10
    for pattern in HEADLINES["postcards-segmenter"].values():
        assert len(fnmatch.filter(scores, pattern)) == 1
    assert all(value.startswith("1.0000") for value in scores.values())


@pytest.mark.slow
def test_a_painter_of_maps_is_scored_with_and_without_words(tmp_path, monkeypatch):
    pipe = tiny_pipeline(MapPipeline, extra_channels=64)
    pipe.unet.config = replace(pipe.unet.config, sample_size=16)  # 64 x 64 pixels
    pipe.save_pretrained(tmp_path / "maps")
    UNet(SEGMENTER).save_pretrained(tmp_path / "segmenter")
    monkeypatch.setattr("minisd.lab.evaluation.POSTCARDS_SEGMENTER", str(tmp_path / "segmenter"))
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
    for pattern in HEADLINES["postcards-maps"].values():
        assert len(fnmatch.filter(scores, pattern)) == 1
    assert evaluate_postcards_maps(tmp_path / "maps", FEW) == scores


def test_real_postcards_are_what_their_maps_say(tmp_path, monkeypatch):
    tiny_pipeline(MapPipeline, extra_channels=64).save_pretrained(tmp_path / "maps")
    UNet(SEGMENTER).save_pretrained(tmp_path / "segmenter")
    data, asked = Postcards("test", 6, seed=7), []

    def draw(self, prompts, n, steps, generator, guidance, maps=None):
        asked.append((prompts, maps is not None))
        yield data.images()

    monkeypatch.setattr("minisd.lab.evaluation.POSTCARDS_SEGMENTER", str(tmp_path / "segmenter"))
    monkeypatch.setattr("minisd.lab.evaluation.SPLITS", {"test": "these"})
    monkeypatch.setattr("minisd.lab.evaluation.Artist.draw", draw)
    monkeypatch.setattr("minisd.lab.evaluation.segment", map_of(data))
    monkeypatch.setattr(AutoencoderKL, "encode", lambda self, images: images)
    monkeypatch.setattr(AutoencoderKL, "decode", lambda self, images: images)
    scores = evaluate_postcards_maps(tmp_path / "maps", FEW)
    words, nothing = data.full_captions, [""] * 6
    assert asked == [(words, True), (nothing, True), (words, False)]
    del scores["samples"]
    assert len(scores) == 18
    for value in scores.values():
        assert value.startswith(("1.0000 (", "100.00% ("))

import json
import math

import pytest
import torch

from minisd.files import read_json, write_json
from minisd.intervals import Accuracy
from minisd.lab.cards import add_scores
from minisd.lab.scores import (
    VERSION,
    Score,
    as_json,
    bootstrapped,
    mean,
    scores_of,
    share,
    share_of,
)
from minisd.pretrained import CHECKPOINTS, bundled


@pytest.mark.parametrize(
    ("score", "words"),
    [
        (Score(0.9966, 0.9953, 0.9976, 10_000, unit="%", digits=2),
         "99.66% (95 % interval 99.53 to 99.76%; n = 10,000)"),
        (Score(30.287, 30.1, 30.41, 2000, unit=" dB", digits=2),
         "30.29 dB (95 % interval 30.10 to 30.41 dB; n = 2,000)"),
        (Score(1.9214, 1.782, 2.386, digits=3), "1.921 (95 % interval 1.782 to 2.386)"),
        (Score(0.5, 0.4, 0.6, 87, 29, "%", 1),
         "50.0% (95 % interval 40.0 to 60.0%; n = 87; 29 clusters)"),
        (Score(0.279, digits=2, note="one alone"), "0.28 (one alone)"),
        (Score(511, unit=" tokens", digits=0), "511 tokens"),
        (Score(0.0, 0.0, 0.0), "0.0000 (95 % interval 0.0000 to 0.0000)"),
    ],
)  # fmt: skip
def test_a_score_is_told_with_what_is_known_of_it(score, words):
    assert str(score) == words
    assert words.startswith(score.figure) and score.interval in words
    assert scores_of({"scores": as_json({"it": score})}) == {"it": score}


def test_a_share_has_the_interval_of_wilson():
    right = torch.tensor([True] * 8 + [False] * 2)
    assert share_of(right) == share(Accuracy(8, 10))
    assert str(share_of(right)) == "80.00% (95 % interval 49.02 to 94.33%; n = 10)"


def test_a_mean_has_the_interval_of_the_bootstrap():
    score = mean(torch.tensor([1.0, 2.0, 3.0, 4.0] * 100), 2, " dB")
    assert (score.value, score.n, score.figure) == (2.5, 400, "2.50 dB")
    assert score.high - score.low == pytest.approx(2 * 1.96 * 1.118 / 20, rel=0.2)


def test_a_statistic_is_scored_by_the_rows_and_their_clusters():
    rows = torch.arange(20.0).repeat_interleave(5)
    score = bootstrapped(lambda x: float(x.sum() / len(x)), rows, 1, "%")
    known = mean(rows, 1, "%", clusters=torch.arange(20).repeat_interleave(5))
    assert (score.value, score.n, score.clusters) == (9.5, 100, None)
    assert (known.value, known.n, known.clusters, known.unit) == (9.5, 100, 20, "%")
    assert known.high - known.low > 1.8 * (score.high - score.low)


def test_scores_are_stored_as_numbers_and_nothing_empty():
    scores = {"accuracy": Score(0.5, n=4, unit="%"), "samples": "4, seed 0"}
    assert as_json(scores) == {
        "version": VERSION,
        "entries": {
            "accuracy": {"value": 0.5, "n": 4, "unit": "%", "digits": 4},
            "samples": "4, seed 0",
        },
    }
    assert scores_of({"scores": json.loads(json.dumps(as_json(scores)))}) == scores
    assert scores_of({}) == {}


def test_scores_from_before_they_were_numbers_stay_text():
    assert scores_of({"scores": {"FID": "3.1 (95 % interval 2 to 4)"}}) == {
        "FID": "3.1 (95 % interval 2 to 4)"
    }


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"version": VERSION + 1, "entries": {}}, "update minisd"),
        ({"version": VERSION, "entries": {"FID": {"worth": 3}}}, "cannot be read"),
        ({"version": VERSION, "entries": 3}, "cannot be read"),
        ([], "cannot be read"),
    ],
)
def test_scores_that_cannot_be_read_raise(stored, message):
    with pytest.raises(ValueError, match=message):
        scores_of({"scores": stored})


@pytest.mark.parametrize("name", bundled())
def test_the_bundled_scores_are_numbers_within_their_intervals(name):
    scores = scores_of(read_json(CHECKPOINTS / name / "training.json"))
    measured = [score for score in scores.values() if isinstance(score, Score)]
    assert measured
    for score in measured:
        assert math.isfinite(score.value)
        if score.low is not None:
            assert score.low <= score.value <= score.high + 1e-12 and score.n


def test_scores_are_added_to_those_that_are_there(tmp_path):
    for file in ("training.json", "card.md"):
        (tmp_path / file).write_bytes((CHECKPOINTS / "digits-judge" / file).read_bytes())
    before = scores_of(read_json(tmp_path / "training.json"))
    new = {"digits": "others", "speed": Score(2.0, unit=" m/s", digits=1)}
    add_scores(tmp_path, new)
    assert scores_of(read_json(tmp_path / "training.json")) == before | new
    card = (tmp_path / "card.md").read_text()
    assert "- digits: others\n" in card and card.endswith("- speed: 2.0 m/s\n")
    old = read_json(tmp_path / "training.json") | {"scores": {"FID": "three"}}
    write_json(tmp_path / "training.json", old)
    add_scores(tmp_path, new)
    assert scores_of(read_json(tmp_path / "training.json")) == {"FID": "three"} | new

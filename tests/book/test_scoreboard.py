"""The page of all scores is what the cards say."""

import importlib.util
from pathlib import Path

import pytest

from minisd.files import read_json, write_json
from minisd.lab.evaluation import FID, PROMPT_ACCURACY, SECONDS
from minisd.lab.recipes import RECIPES
from minisd.lab.scoreboard import HEADLINES, as_markdown, entries_of, scoreboard
from minisd.lab.scores import Score, as_json, scores_of
from minisd.pretrained import CHECKPOINTS, bundled

BOOK = Path(__file__).parents[2] / "book"


def card(name, scores=None, seconds=600.0):
    return {
        "recipe": name,
        "parameters": 1234,
        "cost": {"seconds": seconds, "machine": "abacus"},
        "scores": as_json(scores or {}),
    }


def test_the_page_is_up_to_date():
    spec = importlib.util.spec_from_file_location("scoreboard_page", BOOK / "scoreboard.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.PAGE.read_text() == script.page(), "run python book/scoreboard.py"


def test_every_recipe_has_a_line():
    assert set(HEADLINES) == set(RECIPES)
    models = [entry.model for entry in scoreboard() if entry.model in RECIPES]
    assert models == [name for name in RECIPES if name in bundled()]


@pytest.mark.parametrize("name", bundled())
def test_every_headline_is_one_score_of_its_card(name):
    scores = scores_of(read_json(CHECKPOINTS / name / "training.json"))
    assert all(isinstance(scores[key], Score) for key in HEADLINES[name].values())
    assert all(entry.value != "not scored yet" for entry in scoreboard() if entry.model == name)


@pytest.mark.parametrize(
    ("score", "value", "interval"),
    [
        (Score(0.9966, 0.9953, 0.9976, 100, unit="%", digits=2), "99.66%", "99.53 to 99.76%"),
        (Score(1.921, 1.782, 2.386, 900, digits=3, note="so"), "1.921", "1.782 to 2.386"),
        (Score(30.29, 30.1, 30.41, unit=" dB", digits=2), "30.29 dB", "30.10 to 30.41 dB"),
        (Score(30.29, unit=" dB", digits=2), "30.29 dB", ""),
        ("30.29 dB", "not scored yet", ""),  # text, from before scores were numbers
    ],
)
def test_a_score_is_shown_with_its_interval(score, value, interval):
    seconds = Score(0.41, digits=2, note="alone")
    (entry,) = entries_of(card("digits-ddpm", {"samples": "5", FID: score, SECONDS: seconds}))
    assert (entry.value, entry.interval, entry.seconds) == (value, interval, "0.41")
    assert (entry.parameters, entry.training) == ("1,234", "10 min")


def test_seen_and_held_out_do_not_repeat_the_costs():
    scores = {
        f"{PROMPT_ACCURACY}, seen combinations": Score(0.97, unit="%", digits=2),
        "subject, seen combinations": Score(0.01, unit="%", digits=2),
        f"{PROMPT_ACCURACY}, held-out combinations": Score(0.93, unit="%", digits=2),
    }
    seen, held_out = entries_of(card("postcards", scores))
    assert (seen.model, seen.value, held_out.value) == ("postcards", "97.00%", "93.00%")
    assert [held_out.model, held_out.parameters, held_out.training] == [""] * 3
    last = as_markdown([seen, held_out]).splitlines()[-1]
    assert last.startswith("|  | prompt accuracy, held-out | 93.00% |") and "–" not in last


def test_the_parts_of_the_system_are_added_up_once_all_are_there(tmp_path):
    parts = (*RECIPES["postcards"].requires, "postcards")
    for i, name in enumerate(parts):
        assert "together" not in [entry.model for entry in scoreboard(tmp_path)]
        (tmp_path / name).mkdir()
        training = card(name, seconds=600.0 * (i + 1))
        if name.startswith("tokenizer"):
            del training["parameters"]
        write_json(tmp_path / name / "training.json", training)
    last = scoreboard(tmp_path)[-1]
    assert (last.model, last.parameters, last.training) == ("together", "3,702", "100 min")
    assert "not scored yet" in as_markdown(scoreboard(tmp_path))


def test_the_page_is_in_the_contents():
    assert "file: book/scoreboard\n" in (BOOK.parent / "_toc.yml").read_text()

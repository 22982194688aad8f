"""The diagrams of the book: what is lit, and what is written on the corners."""

from dataclasses import replace
from xml.etree import ElementTree

import pytest

from minisd.book.diagrams import MAP, Row, ladder, side_by_side, system_map
from minisd.book.plots import NOISE, WORDS


def texts(drawing):
    root = ElementTree.fromstring(drawing.markup)
    return [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]


def test_every_part_is_drawn_lit_or_not():
    for lit in ((), ("unet",), tuple(MAP)):
        assert {part.label for part in MAP.values()} <= set(texts(system_map(lit)))
    assert system_map(("unet",)).markup != system_map(()).markup


def test_chapters_are_written_on_the_corners():
    shown = texts(system_map(chapters={"unet": "3 4", "noise": "2"}))
    assert {"3 4", "2"} <= set(shown)
    assert "U-Net (3 4)" in system_map(chapters={"unet": "3 4"}).markup  # the words of the picture
    assert system_map(("unet",), {}).markup == system_map(("unet",)).markup


def test_what_is_written_on_a_corner_is_text_whatever_it_holds():
    words = 'R&D <3 "5"'
    drawing = system_map(chapters={"unet": words})
    assert words in texts(drawing)  # and the drawing is XML
    (title,) = ElementTree.fromstring(drawing.markup).iter("{http://www.w3.org/2000/svg}title")
    assert f"U-Net ({words})" in title.text


def test_a_label_is_text_whatever_it_holds(monkeypatch):
    monkeypatch.setitem(MAP, "unet", replace(MAP["unet"], label="U<&>Net"))
    assert "U<&>Net" in texts(system_map())


@pytest.mark.parametrize("settings", [{"lit": ["judge"]}, {"chapters": {"judge": "4"}}])
def test_a_part_that_is_not_on_the_map(settings):
    with pytest.raises(ValueError, match="judge"):
        system_map(**settings)


ROWS = (
    Row("words", WORDS, ("33 × 192", "77 × 768")),
    Row("U-Net", NOISE, ("4 M; two levels", "860 M; four levels"), (4.0, 864.0)),
    Row("text & more", WORDS, ("6 M", "216 M"), (6.0, 216.0)),
)


def test_squares_have_areas_as_their_parameters():
    drawing = side_by_side(("ours", "theirs"), ROWS)
    root = ElementTree.fromstring(drawing.markup)
    _, *boxes = root.iter("{http://www.w3.org/2000/svg}rect")  # the first is the paper
    squares = [float(box.get("width")) for box in boxes if box.get("rx") is None]
    assert [edge**2 / squares[1] ** 2 for edge in squares] == pytest.approx(
        [n / 864 for row in ROWS[1:] for n in row.parameters], rel=1e-4
    )


def test_every_word_of_both_sides_is_written():
    shown = texts(side_by_side(("ours", "theirs"), ROWS))
    assert {"ours", "theirs", "words 33 × 192", "words 77 × 768"} <= set(shown)
    assert {"text & more", "4 M", "two levels", "860 M", "four levels", "216 M"} <= set(shown)


def test_a_ladder_writes_every_step_beside_its_result():
    drawing = ladder([("", "ids (b,n)"), ("table", "a < b"), ("norm", "(b,n,d)")], "From a & b")
    assert texts(drawing) == ["ids (b,n)", "table", "a < b", "norm", "(b,n,d)"]
    root = ElementTree.fromstring(drawing.markup)
    boxes = list(root.iter("{http://www.w3.org/2000/svg}rect"))[1:]  # without the paper
    assert len(boxes) == 2  # what comes in has none
    assert all(int(box.get("y")) + int(box.get("height")) <= 46 * 3 + 4 for box in boxes)
    (title,) = root.iter("{http://www.w3.org/2000/svg}title")
    assert title.text == "From a & b"

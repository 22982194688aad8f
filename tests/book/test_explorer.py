import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from minisd.book.explorer import EXTENT, Explorer


def explorer(**changes):
    generator = torch.Generator().manual_seed(0)
    walks = {
        name: {n: torch.randn(2, n + 1, 5, 2, generator=generator) for n in (3, 4)}
        for name in ("one", "another")
    }
    settings = dict(walks=walks, data=torch.zeros(7, 2), alt="Walks.") | changes
    return Explorer(**settings)


def spec_of(html):
    return json.loads(re.search(r"var spec = (\{.*?\}), figure", html).group(1))


def test_the_page_holds_every_walk_to_a_thousandth_of_its_width():
    made = explorer()
    spec = spec_of(made.html())
    assert spec["samplers"] == ["one", "another"] and spec["steps"] == [3, 4]
    packed = np.frombuffer(base64.b64decode(spec["points"]), "<u2").astype(float)
    given = [walk for by_steps in made.walks.values() for walk in by_steps.values()]
    assert spec["shapes"] == [[[2, 4, 5], [2, 5, 5]]] * 2
    expected = torch.cat([walk.reshape(-1, 2) for walk in given]).numpy()
    x, y = packed.reshape(-1, 2).T / 4000 * 2 - 1
    decoded = np.stack([x, -y], axis=-1) * EXTENT
    assert np.abs(decoded - expected.clip(-EXTENT, EXTENT)).max() < 2 * EXTENT / 1000


def test_it_has_a_still_and_words_for_those_who_cannot_see_it():
    bundle = explorer()._repr_mimebundle_()
    assert Image.open(io.BytesIO(base64.b64decode(bundle["image/png"]))).size == (400, 400)
    assert 'aria-label="Walks."' in bundle["text/html"] and "Walks." in bundle["text/plain"]
    assert "http" not in bundle["text/html"]  # nothing is fetched


class Page(HTMLParser):
    """What a browser reads of a page: its tags with their attributes, and its script."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.script = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.script += data * (self.lasttag == "script")


def test_words_are_words_whatever_they_hold():
    alt, name = 'Walks of "DDIM" & <b>', "</script><b>"
    plain = explorer()
    walks = dict(zip((name, "another"), plain.walks.values(), strict=True))
    page, usual = Page(explorer(walks=walks, alt=alt).html()), Page(plain.html())
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in usual.tags]
    assert dict(page.tags)["svg"]["aria-label"] == alt
    assert spec_of(page.script)["samplers"] == [name, "another"]


def test_two_explorers_on_one_page_do_not_share_their_id():
    ids = {
        re.search(r'id="([\w-]+)"', explorer(walks=walks).html()).group(1)
        for walks in ({"a": {1: torch.zeros(1, 2, 1, 2)}}, {"a": {1: torch.ones(1, 2, 1, 2)}})
    }
    assert len(ids) == 2


@pytest.mark.parametrize(
    "other",
    [{3: torch.zeros(2, 4, 5, 2)}, {3: torch.zeros(2, 4, 5, 2), 4: torch.zeros(1, 5, 5, 2)}],
    ids=["other steps", "other seeds"],
)
def test_walks_that_do_not_match_raise(other):
    one = {3: torch.zeros(2, 4, 5, 2), 4: torch.zeros(2, 5, 5, 2)}
    with pytest.raises(ValueError, match="same numbers of steps and of seeds"):
        explorer(walks={"one": one, "other": other})

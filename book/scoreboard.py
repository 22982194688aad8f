"""Write the page of all scores, `book/scoreboard.md`, from the cards of the bundled models.

    python book/scoreboard.py

A test fails while the page is not what this script would write.
"""

from pathlib import Path

from minisd.files import read_json, replacing
from minisd.lab.scoreboard import as_markdown, scoreboard
from minisd.pretrained import CHECKPOINTS, bundled

PAGE = Path(__file__).with_suffix(".md")
TEXT = """# Scoreboard

Every model of this book: how good it is, how large, and what it cost. The table is written by
`python book/scoreboard.py` from the cards of the bundled checkpoints. `minisd info NAME` shows a
whole card, with more scores and the number of samples behind each; `minisd evaluate NAME` measures
again.

{table}

- **Score.** Of a judge: the share of unseen real pictures that it reads right. Of a model that
  draws: the share of its pictures in which a judge sees what was asked, or the {{term}}`FID` in the
  features of that judge, which compares with no value measured elsewhere. Of the autoencoder: how
  well unseen postcards come back. Of the segmenter, and of what is drawn from maps: the mean
  {{term}}`IoU` with the true map. *Held-out* are combinations of subject, colour and sky that no
  model but the judge and the segmenter was trained on.
- **95 % interval.** Wilson's for shares, the bootstrap over pictures otherwise. It covers the luck
  of the samples, not that of the training: every model here is one run with one seed.
- **Training.** Wall-clock time of this model alone, from nothing (`postcards-maps` from
  `postcards`); {machines}.
- **Seconds per picture.** One picture alone, from its prompt to its pixels, the model loaded;
  median of five on the machine that scored it.

How such scores are measured, and what they cannot see, is the subject of
chapter 12, {{doc}}`Measuring </chapters/12_measuring>`.
"""


def page() -> str:
    """Return the page as it should be."""
    costs = [read_json(CHECKPOINTS / name / "training.json")["cost"] for name in bundled()]
    machines = " and ".join(sorted({f"on a {cost['machine']}" for cost in costs}))
    return TEXT.format(table=as_markdown(scoreboard()), machines=machines)


if __name__ == "__main__":
    with replacing(PAGE) as temporary:
        temporary.write_text(page(), encoding="utf-8")
    print(f"{PAGE}: written")

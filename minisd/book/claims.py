"""Sentences of the text that say something about a result, each tied to the run that shows it."""


class ClaimFailed(AssertionError):
    """The text says what this run does not show."""


def claim(sentence: str, holds: object) -> None:
    """Raise ClaimFailed unless what a sentence of the chapter says holds in this run.

    `sentence` is the sentence, or a part of it, as it stands in the text; "..." stands for what is
    left out, such as a glued number. A test finds it in the chapter. `holds` is a bool, or a tensor
    or an array of one element.
    """
    if not bool(holds):
        raise ClaimFailed(
            f"the text says {sentence!r}, and this run does not show it: mend the text, or the run"
        )

"""Chapter 6: the merges of CLIP's tokenizer, of which its whole vocabulary follows.

They are the work of OpenAI, under the MIT licence that lies beside the file.
"""

import gzip
from pathlib import Path

FILE = Path(__file__).parent / "merges.txt.gz"


def clip_merges() -> list[tuple[str, str]]:
    """Return the 48,894 merges of CLIP's tokenizer, in order of rank.

    The file that OpenAI published with CLIP (`bpe_simple_vocab_16e6.txt.gz`) has 262,144 lines, of
    which CLIP reads these, for a vocabulary of 49,408.
    """
    text = gzip.decompress(FILE.read_bytes()).decode("utf-8")
    pairs = (line.split(" ") for line in text.removesuffix("\n").split("\n"))
    return [(a, b) for a, b in pairs]

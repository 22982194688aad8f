"""The merges of CLIP that come with the package are those that OpenAI published."""

import gzip
from importlib.util import find_spec
from pathlib import Path

import minisd
from minisd.data.clip_vocabulary import FILE, clip_merges
from minisd.tokenizer import TokenizerConfig


def test_the_merges_are_the_first_of_the_published_file():
    published = Path(find_spec("open_clip").origin).parent / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(published.read_bytes()).decode("utf-8").split("\n")
    assert [" ".join(pair) for pair in clip_merges()] == lines[1 : 1 + 48_894]


def test_they_give_the_vocabulary_of_clip():
    merges, config = clip_merges(), TokenizerConfig.CLIP
    tokens = [*config.alphabet(), *map("".join, merges), config.bos_token, config.eos_token]
    tokenizer = minisd.Tokenizer({token: i for i, token in enumerate(tokens)}, merges, config)
    assert tokenizer.vocab_size == minisd.CLIPTextConfig.SD15.vocab_size
    # the example of transformers' documentation of CLIPModel
    for text, ids in (("a cat", [320, 2368]), ("a dog", [320, 1929])):
        assert tokenizer.encode(text) == ids
    assert tokenizer.eos_token_id == minisd.CLIPTextConfig.SD15.eos_token_id


def test_the_licence_lies_beside_them():
    assert "Copyright (c) 2021 OpenAI" in (FILE.parent / "LICENSE").read_text(encoding="utf-8")

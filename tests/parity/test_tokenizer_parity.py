"""minisd reads CLIP's tokenizer as transformers does, and open_clip's differs only in cleaning.

The vocabulary is the real one.
"""

import html
import json
import random
import unicodedata
from dataclasses import replace

import pytest
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip import tokenizer as open_clip

from minisd import Tokenizer, TokenizerConfig
from minisd.tokenizer import SPACED_WORDS

START, END = "<|startoftext|>", "<|endoftext|>"


@pytest.fixture(scope="module")
def folder(v15_tokenizer):
    return v15_tokenizer


@pytest.fixture(scope="module")
def ours(folder):
    return Tokenizer.from_pretrained(folder, subfolder="tokenizer")


@pytest.fixture(scope="module")
def theirs(folder):
    return transformers.CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")


def ids_of(theirs, texts):
    return theirs(texts, padding="max_length", max_length=77, truncation=True).input_ids


def known(character):
    """Whether the libraries' versions of Unicode agree on a character.

    tokenizers' classes (letter, number) are newer than Python's, its order of accents is older.
    """
    if unicodedata.category(character) in ("Cs", "Cn"):
        return False
    return not unicodedata.combining(character) or bool(unicodedata.ucd_3_2_0.combining(character))


PIECES = [
    *("a", "red", "House", "it's", "WE'LL", "don't've", "'s", "'", "12", "2026", "!!", "...", "_"),
    *(" ", "  ", "\n", "\r\n", "\t", "\x0b", "\x1c", "\x85", "\xa0", "\u2009", "\u2028", "\u3000"),
    *("\x00", "\x07", "\x7f", "\u200b", "\u200d", "\ufeff", "\ufffd"),
    *("é", "e\u0301", "Å", "Å", "ñ", "İ", "ı", "ß", "ẞ", "ΣΑΣ", "ς", "Ж", "ﬁ", "ǅ", "\u0338"),
    *("日本", "한국", "\u1112\u1161\u11ab", "ไทย", "नमस्ते", "שלום", "مرحبا", "٣", "²", "½", "Ⅷ"),
    *("😀", "👩‍🚀", "🇰🇭", "❤️", "👍🏽", "&amp;", "&lt;b&gt;", "&#39;", "&eacute;", "Ã©", "“x”"),
    *(START, END, "<|ENDOFTEXT|>", "<|StartOfText|>", "</w>", "<|", "|>", "Ġ", "temple" * 9),
]


def draw(random, words):
    """Draw a text: words of the vocabulary, odd pieces, and characters from all of Unicode."""
    text = ""
    for _ in range(random.choice([1, 2, 5, 20, 90])):
        kind = random.random()
        if kind < 0.4:
            text += random.choice(words) + random.choice(["", " "])
        elif kind < 0.8:
            text += random.choice(PIECES)
        else:
            top = random.choice([0x80, 0x250, 0x3000, 0x110000])
            character = chr(random.randrange(top))
            text += character if known(character) else "?"
    return text


@pytest.fixture(scope="module")
def drawn(ours):
    generator = random.Random(0)
    words = [token.removesuffix("</w>") for token in ours.vocab if token.isascii()]
    return [draw(generator, words) for _ in range(10_000)]


def check_equal(ours, theirs, texts):
    if len(texts) > 100:  # in parts: a fault is found in the first
        for i in range(0, len(texts), 100):
            check_equal(ours, theirs, texts[i : i + 100])
        return
    padded = ids_of(theirs, texts)
    whole = theirs(texts, add_special_tokens=False, verbose=False).input_ids
    for text, wanted, ids in zip(texts, ours(texts).tolist(), padded, strict=True):
        assert wanted == ids, ascii(text)
    for text, ids in zip(texts, whole, strict=True):
        assert ours.encode(text) == ids, ascii(text)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True), ascii(text)


def test_the_files_are_read(ours, theirs):
    assert ours.vocab_size == len(theirs) == 49_408
    assert ours.config == TokenizerConfig.CLIP
    assert (ours.bos_token_id, ours.eos_token_id, ours.pad_token_id) == (49_406, 49_407, 49_407)
    ids = ours("a photo of a cat")
    assert ids.shape == (1, 77)
    assert ids[0, :8].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407, 49407]


@pytest.mark.parametrize("text", ["", " ", "\x00", "temple " * 100, "x" * 300, *PIECES])
def test_single_texts_are_equal(text, ours, theirs):
    check_equal(ours, theirs, [text])


def test_many_texts_are_equal(ours, theirs, drawn):
    check_equal(ours, theirs, drawn[:1000])


@pytest.mark.slow
def test_ten_thousand_texts_are_equal(ours, theirs, drawn):
    assert sum(len(ids) > 75 for ids in map(ours.encode, drawn)) > 1000  # over-long ones too
    check_equal(ours, theirs, drawn)


@pytest.mark.slow
@settings(max_examples=300)
@given(st.text(st.characters(codec="utf-8").filter(known)))
def test_any_text_is_equal(ours, theirs, text):
    check_equal(ours, theirs, [text])


@pytest.mark.slow
def test_every_character_is_equal(ours, theirs):
    characters = [chr(i) for i in range(0x110000) if known(chr(i))]
    texts = [
        "".join(f"a{c} " for c in characters[i : i + 50]) for i in range(0, len(characters), 50)
    ]
    whole = theirs(texts, add_special_tokens=False, verbose=False).input_ids
    for text, ids in zip(texts, whole, strict=True):
        assert ours.encode(text) == ids, ascii(text)


def test_transformers_opens_what_we_save(ours, theirs, drawn, tmp_path):
    ours.save_pretrained(tmp_path)
    again = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    texts = [text for text in drawn[:500] if "<|StartOfText|>" not in text]  # now as it stands only
    assert ids_of(again, texts) == ids_of(theirs, texts)
    assert Tokenizer.from_pretrained(tmp_path)(drawn[:200]).equal(ours(drawn[:200]))


# open_clip repairs broken encodings (ftfy), undoes HTML and joins spaces before it tokenizes, and
# writes its special tokens differently. It does not compose accents.


def test_open_clip_is_equal_after_its_own_cleaning(ours, drawn):
    composed = 0
    for text in drawn[:1000]:
        clean = open_clip._clean_lower(text)
        same = ours.config.normalise(clean) == clean  # or it has accents to compose
        composed += not same
        if same and START not in clean and END not in clean and "<|" not in clean:
            assert ours.encode(clean) == open_clip._tokenizer.encode(text), ascii(text)
    assert composed < 300


@pytest.mark.parametrize("text", ["&amp;", "Ã©", "“x”", "ﬁ", "&lt;b&gt;"])
def test_open_clip_cleans_what_transformers_keeps(text, ours, theirs):
    assert ours.encode(text) == theirs(text, add_special_tokens=False).input_ids
    assert ours.encode(text) != open_clip._tokenizer.encode(text)
    clean = html.unescape(open_clip.ftfy.fix_text(text))
    assert ours.encode(clean) == open_clip._tokenizer.encode(text)


# Faults.


def lowered_only(self, text):
    return "".join(letter.lower() for letter in text)


def lowered_as_words(self, text):
    """Python's own lower() writes a sigma at the end of a word in its final form."""
    return unicodedata.normalize("NFC", text).lower()


@pytest.mark.parametrize("normalise", [lowered_only, lowered_as_words])
def test_a_wrong_normalisation_is_seen(normalise, ours, theirs, drawn, monkeypatch):
    monkeypatch.setattr(TokenizerConfig, "normalise", normalise)
    with pytest.raises(AssertionError):
        check_equal(Tokenizer(ours.vocab, ours.ranks, ours.config), theirs, drawn[:300])


@pytest.mark.parametrize(
    "wrong",
    [
        {"do_lower_case": False},
        {"pad_token": "!"},
        {"end_of_word_suffix": ""},
        {"split_special_tokens": True},
        {"model_max_length": 76},
    ],
    ids=str,
)
def test_a_wrong_setting_is_seen(wrong, ours, theirs, drawn):
    wrong = Tokenizer(ours.vocab, ours.ranks, replace(ours.config, **wrong))
    with pytest.raises(AssertionError):
        check_equal(wrong, theirs, drawn[:300])


def test_a_wrong_order_of_merges_is_seen(ours, theirs, drawn):
    merges = list(ours.ranks)
    merges[100], merges[200] = merges[200], merges[100]
    wrong = Tokenizer(ours.vocab, merges, ours.config)
    with pytest.raises(AssertionError):
        check_equal(wrong, theirs, drawn[:1000])


# Our own kind: nothing is lost, and the tokenizers library learns and applies the same merges.

CAPTIONS = [
    f"a {colour} {thing} {where} {when}"
    for colour in ("red", "blue", "white", "golden")
    for thing in ("house", "lighthouse", "temple", "windmill", "boat")
    for where in ("by the sea", "on the sand", "in the snow")
    for when in ("at night", "at sunset", "in a storm")
]


@pytest.mark.parametrize("vocab_size", [258, 300, 420])
def test_the_tokenizers_library_learns_and_applies_the_same_merges(vocab_size, drawn):
    ours = Tokenizer.train(CAPTIONS, vocab_size)
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(SPACED_WORDS), "isolated"),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size - 2, initial_alphabet=alphabet, show_progress=False
    )
    theirs.train_from_iterator([f" {caption}" for caption in CAPTIONS], trainer)
    merges = json.loads(theirs.to_str())["model"]["merges"]
    assert [list(pair) for pair in ours.ranks] == merges
    for text in [*CAPTIONS, *drawn[:500]]:
        assert ours.encode(text) == theirs.encode(f" {text}").ids, ascii(text)

import json
import shutil
import time
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minisd import Tokenizer, TokenizerConfig
from minisd.tokenizer import BYTES, merge_pair

CAPTIONS = [
    f"a {colour} {thing} {when}"
    for colour in ("red", "blue", "white")
    for thing in ("house", "lighthouse", "temple", "boat")
    for when in ("at night", "at sunset", "in the snow")
]
LIKE_CLIP = TokenizerConfig.CLIP


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(CAPTIONS, 290, TokenizerConfig(model_max_length=12))


@pytest.fixture(scope="module")
def like_clip():
    return Tokenizer.train(CAPTIONS, 600, LIKE_CLIP)


def test_the_byte_table_is_one_to_one_and_visible():
    assert sorted(BYTES) == list(range(256))
    assert len(set(BYTES.values())) == 256
    assert all(c.isprintable() and not c.isspace() for c in BYTES.values())
    assert BYTES[ord("a")] == "a" and BYTES[ord(" ")] == "Ġ"


def test_merge_pair_goes_from_left_to_right():
    assert merge_pair(list("aaab"), ("a", "a")) == ["aa", "a", "b"]
    assert merge_pair(list("abcab"), ("a", "b")) == ["ab", "c", "ab"]
    assert merge_pair(["a"], ("a", "a")) == ["a"]


def test_sennrichs_example():
    """Low, lower, newest, widest: the first merges by hand. Sennrich et al. 2016, algorithm 1."""
    words = ["low"] * 5 + ["lower"] * 2 + ["newest"] * 6 + ["widest"] * 3
    tokenizer = Tokenizer.train([" ".join(words)], 512 + 2 + 3, LIKE_CLIP)
    assert list(tokenizer.ranks) == [("e", "s"), ("es", "t</w>"), ("l", "o")]


def test_training_counts_words_and_merges_the_most_frequent_pair():
    tokenizer = Tokenizer.train(["ab ab ab cd"], 256 + 2 + 2)
    assert list(tokenizer.ranks) == [("a", "b"), ("Ġ", "ab")]


def test_training_sees_captions_as_the_tokenizer_will_write_them():
    """Letters in lower case, and an accent as one letter, however it was typed."""
    config = TokenizerConfig(do_lower_case=True)
    plain = Tokenizer.train(["a caf\u00e9 by the sea"] * 2, 400, config)
    assert Tokenizer.train(["A CAFE\u0301 BY THE SEA"] * 2, 400, config).vocab == plain.vocab


def test_training_stops_when_every_word_is_one_token(tokenizer):
    full = Tokenizer.train(CAPTIONS, 10_000)
    assert full.vocab_size < 400
    assert all(len(full.encode(caption)) == len(caption.split()) for caption in CAPTIONS)
    assert tokenizer.vocab_size == 290


def test_training_does_not_depend_on_the_order_of_captions():
    again = Tokenizer.train(CAPTIONS[::-1], 320)
    assert again.vocab == Tokenizer.train(iter(CAPTIONS), 320).vocab


def test_training_is_fast_where_words_repeat():
    start = time.process_time()
    Tokenizer.train(CAPTIONS * 300, 1000)  # about 10,000 captions
    assert time.process_time() - start < 3


def test_a_word_is_the_same_token_wherever_it_stands(tokenizer):
    assert tokenizer.encode("red house")[0] == tokenizer.encode("a red house")[1]


@given(st.text(st.characters(codec="utf-8")))
def test_nothing_is_lost(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", " ", "  a", "a  ", "\n\t", "<|endoftext|>", "Ünïcödé", "👩‍🚀", "日本", "\x00", "</w>"],
)
def test_nothing_is_lost_at_the_edges(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_lower_case_is_a_setting():
    tokenizer = Tokenizer.train(CAPTIONS, 320, TokenizerConfig(do_lower_case=True))
    assert tokenizer.encode("A Red HOUSE") == tokenizer.encode("a red house")
    assert tokenizer.decode(tokenizer.encode("É")) == "é"


def test_ids_are_padded_and_truncated(tokenizer):
    ids = tokenizer(["a red house", "a red house at night " * 9, ""])
    assert ids.shape == (3, 12) and ids.dtype == torch.int64
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    words = tokenizer.encode("a red house")
    rest = [tokenizer.pad_token_id] * (10 - len(words))
    assert ids[0].tolist() == [start, *words, end, *rest]
    assert (ids[:, 0] == start).all() and ids[1, -1] == end
    assert (ids[1, :-1] != end).all()
    assert ids[2].tolist() == [start, end] + [tokenizer.pad_token_id] * 10
    assert tokenizer("a red house").equal(ids[:1])
    assert tokenizer.decode(ids[0]) == "a red house"


def test_the_shortest_length_holds_one_token(tokenizer):
    short = Tokenizer(tokenizer.vocab, tokenizer.ranks, TokenizerConfig(model_max_length=3))
    assert short("a red house")[0].tolist() == [
        short.bos_token_id,
        short.encode("a")[0],
        short.eos_token_id,
    ]


def test_padding_can_be_a_token_of_its_own():
    config = TokenizerConfig(pad_token="<|pad|>", model_max_length=8)
    tokenizer = Tokenizer.train(CAPTIONS, 300, config)
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3
    assert tokenizer("a")[0, -1] == tokenizer.pad_token_id
    assert tokenizer.vocab_size == 300 == max(tokenizer.vocab.values()) + 1


def test_special_tokens_in_a_text_are_text_unless_the_settings_say_otherwise(tokenizer, like_clip):
    assert tokenizer.eos_token_id not in tokenizer.encode("a <|endoftext|> b")
    assert like_clip.encode("a <|endoftext|> b")[1] == like_clip.eos_token_id
    assert like_clip.encode("<|startoftext|>a")[0] == like_clip.bos_token_id


def test_the_same_word_is_merged_once(tokenizer):
    tokenizer.encode("zebra")
    assert tokenizer.cache[" zebra"] == tokenizer.encode("zebra")


@pytest.mark.parametrize(
    "config", [TokenizerConfig(), LIKE_CLIP, TokenizerConfig(9, "[start]", "[end]", "[pad]")]
)
def test_a_saved_tokenizer_is_the_same(config, tmp_path):
    tokenizer = Tokenizer.train([*CAPTIONS, "caf\u00e9"], 600, config)
    tokenizer.save_pretrained(tmp_path / "a" / "tokenizer")
    again = Tokenizer.from_pretrained(tmp_path / "a", subfolder="tokenizer")
    assert (again.vocab, again.ranks, again.config) == (tokenizer.vocab, tokenizer.ranks, config)
    assert again("a red caf\u00e9").equal(tokenizer("a red caf\u00e9"))
    names = {path.name for path in (tmp_path / "a" / "tokenizer").iterdir()}
    assert names == {"vocab.json", "merges.txt", "tokenizer_config.json"}


@pytest.mark.parametrize("captions", [[], [""], ["", ""]])
def test_training_needs_captions(captions):
    with pytest.raises(ValueError, match="no captions"):
        Tokenizer.train(captions, 300)


@pytest.mark.parametrize(("config", "least"), [(TokenizerConfig(), 258), (LIKE_CLIP, 514)])
def test_a_vocabulary_must_hold_every_byte(config, least):
    assert Tokenizer.train(CAPTIONS, least, config).vocab_size == least
    with pytest.raises(ValueError, match=f"at least {least}.*got {least - 1}"):
        Tokenizer.train(CAPTIONS, least - 1, config)


@pytest.mark.parametrize("captions", ["a red house", [None], [b"a"], ["a", 3]])
def test_captions_must_be_a_list_of_texts(captions):
    with pytest.raises(ValueError, match="text"):
        Tokenizer.train(captions, 300)


@pytest.mark.parametrize("prompt", [None, 3, b"a", ["a", None], [["a"]], "\ud800"])
def test_a_prompt_must_be_text(tokenizer, prompt):
    with pytest.raises(ValueError, match="text"):
        tokenizer(prompt)


def test_at_least_one_prompt(tokenizer):
    with pytest.raises(ValueError, match="no prompts"):
        tokenizer([])


@pytest.mark.parametrize(
    ("length", "allowed"),
    [*[(n, "at least 3") for n in (2, 0, -1)], *[(n, "an integer") for n in (7.5, None, True)]],
)
def test_a_length_must_hold_a_token(length, allowed):
    with pytest.raises(ValueError, match=f"model_max_length must be {allowed}.*got {length}"):
        TokenizerConfig(model_max_length=length)


@pytest.mark.parametrize("changes", [{"bos_token": ""}, {"pad_token": None}, {"eos_token": 3}])
def test_special_tokens_must_be_tokens(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        TokenizerConfig(**changes)


def test_special_tokens_must_not_be_ordinary_ones():
    with pytest.raises(ValueError, match="choose longer names"):
        Tokenizer.train(CAPTIONS, 300, TokenizerConfig(pad_token="!"))


def test_start_and_end_must_differ():
    with pytest.raises(ValueError, match="make them two"):
        TokenizerConfig(bos_token="|", eos_token="|")


@pytest.mark.parametrize("ids", [[290], [-1], [0, 10**9]])
def test_an_id_outside_the_vocabulary_is_refused(tokenizer, ids):
    with pytest.raises(ValueError, match="ids must be 0 to 289"):
        tokenizer.decode(ids)


def test_broken_bytes_are_marked(tokenizer):
    assert tokenizer.decode(tokenizer.encode("é")[:-1]) == "\ufffd"


def without(vocab, token):
    left = [t for t in vocab if t != token]
    return {t: i for i, t in enumerate(left)}


@pytest.mark.parametrize("token", ["a", "<|endoftext|>", "<|startoftext|>", "re", "Ġ"])
def test_vocabulary_and_merges_must_fit(tokenizer, token):
    merges = [*tokenizer.ranks, ("r", "e")]
    vocab = without(tokenizer.vocab, token)
    with pytest.raises(ValueError, match="do not fit"):
        Tokenizer(vocab, merges, tokenizer.config)


@pytest.mark.parametrize("change", [{"a": 1}, {"a": 10_000}, {"a": -1}, {"a": "x"}])
def test_ids_must_be_the_first_numbers(tokenizer, change):
    with pytest.raises(ValueError, match="0, 1, 2"):
        Tokenizer(tokenizer.vocab | change, tokenizer.ranks, tokenizer.config)


def test_special_tokens_must_be_in_the_vocabulary(tokenizer):
    with pytest.raises(ValueError, match="'<pad>'"):
        Tokenizer(tokenizer.vocab, tokenizer.ranks, replace(tokenizer.config, pad_token="<pad>"))


DAMAGE = {
    "vocab.json": ["", "[]", '{"a": 0', '{"a": 0}', "\xff"],
    "merges.txt": ["#version: 0.2\na\n", "a b c\n", "a  b\n", "q zebra\n", "a b\n\nc d\n", "\xff"],
    "tokenizer_config.json": ["", "[]", '{"model_max_length": 2}', '{"colour": 3}', "\xff"],
}


@pytest.mark.parametrize(
    ("file", "content"), [(file, content) for file in DAMAGE for content in DAMAGE[file]]
)
def test_a_damaged_file_is_named(tokenizer, file, content, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / file).write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=str(tmp_path)):
        Tokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("file", DAMAGE)
def test_a_missing_file_is_named(tokenizer, file, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(ValueError, match=f"{file} does not exist"):
        Tokenizer.from_pretrained(tmp_path)


def test_files_of_two_tokenizers_do_not_mix(tokenizer, like_clip, tmp_path):
    tokenizer.save_pretrained(tmp_path / "a")
    like_clip.save_pretrained(tmp_path / "b")
    shutil.copy(tmp_path / "b" / "merges.txt", tmp_path / "a")
    with pytest.raises(ValueError, match="do not fit"):
        Tokenizer.from_pretrained(tmp_path / "a")


def test_windows_line_ends_are_read(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    merges = (tmp_path / "merges.txt").read_bytes()
    (tmp_path / "merges.txt").write_bytes(merges.replace(b"\n", b"\r\n"))
    assert Tokenizer.from_pretrained(tmp_path).ranks == tokenizer.ranks


def test_an_unwritable_folder_is_named(tokenizer, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="choose another folder"):
        tokenizer.save_pretrained(tmp_path / "file")


def test_clips_settings_are_read_in_both_spellings(like_clip, tmp_path):
    """transformers writes a special token as text, or with how it is matched."""
    like_clip.save_pretrained(tmp_path)
    raw = {"tokenizer_class": "CLIPTokenizer", "errors": "replace", "model_max_length": 20}
    raw |= {"bos_token": {"content": "<|startoftext|>", "lstrip": False}, "pad_token": "!"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(raw))
    config = Tokenizer.from_pretrained(tmp_path).config
    assert config == replace(LIKE_CLIP, model_max_length=20, pad_token="!")


@pytest.mark.parametrize("joined", [False, True], ids=["pairs", "texts"])
def test_vocabulary_and_merges_in_one_file(like_clip, joined, tmp_path):
    """As transformers 5 writes them, and as 4 did."""
    like_clip.save_pretrained(tmp_path, "diffusers")
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"]
    merges = [" ".join(pair) if joined else list(pair) for pair in like_clip.ranks]
    whole = {"version": "1.0", "model": {"vocab": like_clip.vocab, "merges": merges}}
    for file in ("vocab.json", "merges.txt"):
        (tmp_path / file).unlink()
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole))
    again = Tokenizer.from_pretrained(tmp_path)
    assert (again.vocab, again.ranks) == (like_clip.vocab, like_clip.ranks)
    assert again.config == like_clip.config
    models = ['{"vocab": {}}', "3", '{"vocab": 3, "merges": []}', '{"vocab": {}, "merges": null}']
    models += ['{"vocab": {}, "merges": [3]}', "[]"]
    for broken in ("{}", *(f'{{"model": {model}}}' for model in models)):
        (tmp_path / "tokenizer.json").write_text(broken)
        with pytest.raises(ValueError, match=r"tokenizer\.json holds no vocabulary"):
            Tokenizer.from_pretrained(tmp_path)
    for broken, message in (
        ("[]", "must hold one JSON object"),
        ('{"model": {"vocab": {}, "merges": [["a"]]}}', "a merge is two tokens, got 'a'"),
        ('{"model": {"vocab": {}, "merges": [["a", 3]]}}', "must be 0, 1, 2|not in the vocabulary"),
    ):
        (tmp_path / "tokenizer.json").write_text(broken)
        with pytest.raises(ValueError, match=message):
            Tokenizer.from_pretrained(tmp_path)


def test_only_a_tokenizer_like_clips_has_a_counterpart_in_transformers(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="CLIPTokenizer has end_of_word_suffix='</w>'"):
        tokenizer.save_pretrained(tmp_path / "new", "diffusers")
    with pytest.raises(ValueError, match="got 'onnx'"):
        tokenizer.save_pretrained(tmp_path / "new", "onnx")
    assert not (tmp_path / "new").exists()

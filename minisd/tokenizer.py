"""Chapter 6: byte-pair encoding, from text to the numbers that a network reads, and back."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Self

import regex
import torch
from torch import Tensor

from minisd.configs import build_config, check_fields
from minisd.files import read_json, read_text, replacing, writable_folder, write_json
from minisd.pretrained import check_format, locate

FILES = ("vocab.json", "merges.txt", "tokenizer_config.json")
ALL_IN_ONE = "tokenizer.json"  # what transformers 5 writes in place of the first two
CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"
BARE_WORDS = rf"{CONTRACTIONS}|\p{{L}}+|\p{{N}}|[^\s\p{{L}}\p{{N}}]+"
SPACED_WORDS = rf"{CONTRACTIONS}| ?\p{{L}}+| ?\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+"


def byte_characters() -> dict[int, str]:
    """Return a visible character for each of the 256 bytes, so that a vocabulary can be printed.

    Printable bytes of Latin-1 stand for themselves and come first; the others follow from U+0100
    on. The table of GPT-2 (Radford et al. 2019), which CLIP kept.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


BYTES = byte_characters()
BYTE_OF = {character: byte for byte, character in BYTES.items()}


def merge_pair(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    """Join every occurrence of `pair` in `symbols`, from left to right."""
    merged, i = [], 0
    while i < len(symbols):
        width = 2 if tuple(symbols[i : i + 2]) == pair else 1
        merged.append("".join(symbols[i : i + width]))
        i += width
    return merged


@dataclass(frozen=True)
class TokenizerConfig:
    """What a tokenizer does before and after the merges; names of transformers where it has them.

    With an `end_of_word_suffix` the spaces are dropped and the last symbol of a word is marked, as
    in CLIP; without one each word keeps the space before it, and nothing is lost. `do_lower_case`
    also composes accents (Unicode NFC). `split_special_tokens` reads a special token inside a text
    as plain text. Raises ValueError if `model_max_length` leaves no room for a token.
    """

    model_max_length: int = 77
    bos_token: str = "<|startoftext|>"
    eos_token: str = "<|endoftext|>"
    pad_token: str = "<|endoftext|>"
    end_of_word_suffix: str = ""
    do_lower_case: bool = False
    split_special_tokens: bool = True

    CLIP: ClassVar["TokenizerConfig"]

    def __post_init__(self):
        check_fields(self, "model_max_length")
        length = self.model_max_length
        if length < 3:
            raise ValueError(
                f"model_max_length must be at least 3 (start, one token, end), got {length!r}"
            )
        for name in ("bos_token", "eos_token", "pad_token"):
            if not getattr(self, name):
                raise ValueError(f"{name} must be a token, got {getattr(self, name)!r}")
        if self.bos_token == self.eos_token:
            raise ValueError(f"bos_token and eos_token are both {self.bos_token!r}; make them two")

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """Start, end and padding, each once."""
        return tuple(dict.fromkeys((self.bos_token, self.eos_token, self.pad_token)))

    def alphabet(self) -> list[str]:
        """Return the symbols of the first words: one per byte, inside and ending a word."""
        suffixes = ("", self.end_of_word_suffix) if self.end_of_word_suffix else ("",)
        return [character + suffix for suffix in suffixes for character in BYTES.values()]

    def normalise(self, text: str) -> str:
        """Return the text as the tokens see it."""
        if not self.do_lower_case:
            return text
        # Letter by letter: at the end of a word Python would turn a capital sigma into another one.
        return "".join(letter.lower() for letter in unicodedata.normalize("NFC", text))

    def words(self, text: str) -> list[str]:
        """Cut a text into words, digits, punctuation and spaces; no merge crosses a cut."""
        if not self.end_of_word_suffix:
            return regex.findall(SPACED_WORDS, " " + text) if text else []
        # An end token in upper case is text, but transformers still cuts there: twice, as it does.
        pieces = regex.findall(f"{regex.escape(self.eos_token)}|{BARE_WORDS}", text)
        return [word for piece in pieces for word in regex.findall(BARE_WORDS, piece)]

    def symbols(self, word: str) -> list[str]:
        """Return one symbol per byte of a word."""
        symbols = [BYTES[byte] for byte in word.encode("utf-8")]
        return [*symbols[:-1], symbols[-1] + self.end_of_word_suffix]


TokenizerConfig.CLIP = TokenizerConfig(
    end_of_word_suffix="</w>", do_lower_case=True, split_special_tokens=False
)


class Tokenizer:
    """Byte-level byte-pair encoding: `vocab` maps tokens to ids, `merges` are in order of rank.

    Called on one or more prompts it returns ids (b, model_max_length), int64: start, tokens, end,
    padding. Sennrich et al. 2016, section 3.2; on bytes, Radford et al. 2019, section 2.2.
    Raises ValueError if vocabulary, merges and special tokens do not fit each other.
    """

    def __init__(
        self,
        vocab: dict[str, int],
        merges: Iterable[tuple[str, str]],
        config: TokenizerConfig = TokenizerConfig(),  # noqa: B008  frozen
    ):
        self.config = config
        self.vocab = dict(vocab)
        self.ranks = {pair: rank for rank, pair in enumerate(merges)}
        self.tokens = {i: token for token, i in self.vocab.items()}
        if set(self.tokens) != set(range(len(self.vocab))):
            raise ValueError(f"the ids of a vocabulary of {len(self.vocab)} must be 0, 1, 2 ...")
        needed = [*config.alphabet(), *config.special_tokens]
        needed += [token for a, b in self.ranks for token in (a, b, a + b)]
        missing = [token for token in needed if token not in self.vocab]
        if missing:
            raise ValueError(
                f"vocabulary and merges do not fit: {len(missing)} tokens are not in the "
                f"vocabulary ({missing[0]!r} ...); take both from the same tokenizer"
            )
        self.bos_token_id = self.vocab[config.bos_token]
        self.eos_token_id = self.vocab[config.eos_token]
        self.pad_token_id = self.vocab[config.pad_token]
        self.cache: dict[str, list[int]] = {}

    @property
    def vocab_size(self) -> int:
        """How many tokens there are, the special ones included."""
        return len(self.vocab)

    @classmethod
    def train(
        cls,
        captions: Iterable[str],
        vocab_size: int,
        config: TokenizerConfig = TokenizerConfig(),  # noqa: B008  frozen
    ) -> Self:
        """Learn merges: again and again, join the pair that is most frequent inside the words.

        Of equally frequent pairs the one with the lowest ids wins. Stops early once every word is
        one token. Raises ValueError without captions, or if not even the bytes and the special
        tokens fit into `vocab_size`.
        """
        vocab = {token: i for i, token in enumerate(config.alphabet())}
        room = vocab_size - len(config.special_tokens)
        if room < len(vocab):
            raise ValueError(
                f"vocab_size must be at least {len(vocab) + len(config.special_tokens)} (every "
                f"byte and the special tokens), got {vocab_size}"
            )
        if isinstance(captions, str):
            raise ValueError(f"captions must be a list of texts, got one text: {captions!r}")
        counts = Counter()
        for caption in captions:
            check_text(caption)
            counts.update(config.words(config.normalise(caption)))
        if not counts:
            raise ValueError("no captions to learn from: give at least one that is not empty")
        words = [(config.symbols(word), count) for word, count in counts.items()]
        merges = []
        while len(vocab) < room:
            pairs = Counter()
            for symbols, count in words:
                for pair in pairwise(symbols):
                    pairs[pair] += count
            if not pairs:
                break
            best = min(pairs, key=lambda pair: (-pairs[pair], vocab[pair[0]], vocab[pair[1]]))
            words = [(merge_pair(symbols, best), count) for symbols, count in words]
            merges.append(best)
            vocab.setdefault("".join(best), len(vocab))
        special = {token: len(vocab) + i for i, token in enumerate(config.special_tokens)}
        if vocab.keys() & special:
            raise ValueError(f"{vocab.keys() & special} must be special: choose longer names")
        return cls(vocab | special, merges, config)

    @classmethod
    def from_pretrained(cls, name: str | Path, subfolder: str = "") -> Self:
        """Load a tokenizer from a folder, by the name of a bundled checkpoint, or by its hub id.

        Reads what `save_pretrained` writes, and the files of CLIP as they stand in a folder of
        Stable Diffusion. Raises ValueError if a file is missing, damaged, or does not fit.
        """
        folder = locate(name, subfolder, (*FILES, ALL_IN_ONE))
        vocab, merges, raw = read_files(folder)
        config = build_config(TokenizerConfig, raw, folder / FILES[2])
        try:
            return cls(vocab, merges, config)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from None

    def save_pretrained(self, folder: str | Path, format: str = "minisd") -> None:
        """Write vocabulary, merges and settings, each whole or not at all.

        With `format="diffusers"` the settings are those of transformers' CLIPTokenizer. Raises
        ValueError if this tokenizer does not cut texts as CLIP's does, or for an unknown format.
        """
        check_format(format)
        settings = asdict(self.config)
        if format == "diffusers":
            settings = settings_for_clip(self.config)
        folder = writable_folder(folder)
        vocab_file, merges_file, config_file = (folder / file for file in FILES)
        write_json(vocab_file, self.vocab)
        with replacing(merges_file) as temporary:
            lines = ["#version: 0.2", *(" ".join(pair) for pair in self.ranks)]
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
        write_json(config_file, settings)

    def __call__(self, prompts: str | Sequence[str]) -> Tensor:
        prompts = as_list(prompts)
        if not prompts:
            raise ValueError("no prompts: give a text, or a list of at least one")
        length = self.config.model_max_length
        ids = torch.full((len(prompts), length), self.pad_token_id)  # (b,n)
        for row, prompt in zip(ids, prompts, strict=True):
            tokens = [self.bos_token_id, *self.encode(prompt)[: length - 2], self.eos_token_id]
            row[: len(tokens)] = torch.tensor(tokens)
        return ids

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text of any length, without start, end and padding.

        Raises ValueError for what is not text.
        """
        check_text(text)
        c = self.config
        if c.split_special_tokens:
            return self._merge_words(c.normalise(text))
        parts = []
        for part in text.split(c.eos_token):  # as it stands; the start token in upper case too
            pieces = c.normalise(part).split(c.bos_token)
            parts.append(joined(map(self._merge_words, pieces), self.bos_token_id))
        return joined(parts, self.eos_token_id)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids (n,), without the special tokens.

        Bytes that are no UTF-8 become U+FFFD. Raises ValueError for an id out of range.
        """
        special = {self.bos_token_id, self.eos_token_id, self.pad_token_id}
        ids = [int(i) for i in ids]
        unknown = [i for i in ids if i not in self.tokens]
        if unknown:
            raise ValueError(f"ids must be 0 to {self.vocab_size - 1}, got {unknown[0]}")
        characters = "".join(self.tokens[i] for i in ids if i not in special)
        text = bytes(BYTE_OF[character] for character in characters).decode(errors="replace")
        suffix = self.config.end_of_word_suffix
        return text.replace(suffix, " ").strip() if suffix else text.removeprefix(" ")

    def _merge_words(self, text: str) -> list[int]:
        """Return the ids of a text that holds no special token; each word is merged only once."""
        words = self.config.words(text)
        for word in words:
            if word not in self.cache:
                self.cache[word] = self._merge(word)
        return [i for word in words for i in self.cache[word]]

    def _merge(self, word: str) -> list[int]:
        """Apply the merges to one word, the lowest rank first."""
        symbols, never = self.config.symbols(word), len(self.ranks)
        while len(symbols) > 1:
            best = min(pairwise(symbols), key=lambda pair: self.ranks.get(pair, never))
            if best not in self.ranks:
                break
            symbols = merge_pair(symbols, best)
        return [self.vocab[symbol] for symbol in symbols]


def check_text(text: str) -> None:
    """Raise ValueError unless `text` is a string that can be written as UTF-8."""
    if not isinstance(text, str):
        raise ValueError(f"a prompt must be text, got {type(text).__name__}: {text!r}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"a prompt must be valid text, got {text!r}: {error.reason}") from None


def as_list(texts: str | Sequence[str]) -> list[str]:
    """Return one text, or several, as a list; what is no text is for `check_text` to refuse."""
    return list(texts) if isinstance(texts, Sequence) and not isinstance(texts, str) else [texts]


def joined(lists: Iterable[list[int]], separator: int) -> list[int]:
    """Concatenate lists of ids with `separator` between them."""
    first, *rest = lists
    return first + [i for ids in rest for i in (separator, *ids)]


def read_files(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]], dict[str, Any]]:
    """Return the vocabulary, the merges and the settings that lie in a folder.

    Raises ValueError for what is missing or damaged.
    """
    vocab_file, merges_file, config_file = (folder / file for file in FILES)
    if not vocab_file.is_file() and (folder / ALL_IN_ONE).is_file():
        merges_file = folder / ALL_IN_ONE
        whole = read_json(merges_file)
        try:
            vocab, merges = dict(whole["model"]["vocab"]), whole["model"]["merges"]
            merges = [tuple(p.split(" ") if isinstance(p, str) else map(str, p)) for p in merges]
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"{merges_file} holds no vocabulary with merges") from None
    else:
        vocab = read_json(vocab_file)
        lines = read_text(merges_file).removesuffix("\n").split("\n")
        merges = [tuple(line.split(" ")) for line in lines if not line.startswith("#version")]
    raw = read_json(config_file)
    bad = next((pair for pair in merges if len(pair) != 2 or not all(pair)), None)
    if bad is not None:
        raise ValueError(f"{merges_file}: a merge is two tokens, got {' '.join(bad)!r}")
    if raw.get("tokenizer_class") == "CLIPTokenizer":
        raw = clip_settings(raw)
    return vocab, [(a, b) for a, b in merges], raw


def clip_settings(raw: dict) -> dict:
    """Turn the tokenizer_config.json of transformers' CLIPTokenizer into TokenizerConfig's."""
    known = {field.name for field in fields(TokenizerConfig)}
    values = {key: value for key, value in raw.items() if key in known}
    for key, value in values.items():
        values[key] = value["content"] if isinstance(value, dict) else value
    return asdict(TokenizerConfig.CLIP) | values


def settings_for_clip(config: TokenizerConfig) -> dict:
    """Return the tokenizer_config.json with which transformers' CLIPTokenizer does the same.

    Raises ValueError where it would not.
    """
    for name in ("end_of_word_suffix", "do_lower_case", "split_special_tokens"):
        wanted = getattr(TokenizerConfig.CLIP, name)
        if getattr(config, name) != wanted:
            raise ValueError(f"transformers' CLIPTokenizer has {name}={wanted!r}, not this one")
    settings = {
        name: value for name, value in asdict(config).items() if name != "end_of_word_suffix"
    }
    return settings | {"unk_token": config.eos_token, "tokenizer_class": "CLIPTokenizer"}

import json

import pytest

from minisd.data.clip_vocabulary import clip_merges
from minisd.tokenizer import BYTES

START, END = "<|startoftext|>", "<|endoftext|>"


@pytest.fixture(scope="session")
def v15_tokenizer(tmp_path_factory):
    """The four files of `tokenizer/` in a folder of Stable Diffusion v1.5."""
    merges = [" ".join(pair) for pair in clip_merges()]
    symbols = list(BYTES.values())
    tokens = [*symbols, *(s + "</w>" for s in symbols), *("".join(m.split()) for m in merges)]
    tokens += [START, END]

    def special(content):
        rest = dict(lstrip=False, normalized=True, rstrip=False, single_word=False)
        return {"content": content, **rest}

    special_tokens = {
        "bos_token": special(START),
        "eos_token": special(END),
        "unk_token": special(END),
    }
    config = {
        **{key: {"__type": "AddedToken", **value} for key, value in special_tokens.items()},
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": 77,
        "name_or_path": "openai/clip-vit-large-patch14",
        "pad_token": END,
        "special_tokens_map_file": "./special_tokens_map.json",
        "tokenizer_class": "CLIPTokenizer",
    }
    folder = tmp_path_factory.mktemp("v1.5")
    (folder / "tokenizer").mkdir()
    for name, value in {
        "vocab.json": {token: i for i, token in enumerate(tokens)},
        "special_tokens_map.json": special_tokens | {"pad_token": END},
        "tokenizer_config.json": config,
    }.items():
        (folder / "tokenizer" / name).write_text(json.dumps(value), encoding="utf-8")
    text = "\n".join(["#version: 0.2", *merges]) + "\n"
    (folder / "tokenizer" / "merges.txt").write_text(text, encoding="utf-8")
    return folder

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from minisd import Tokenizer, TokenizerConfig
from minisd.data.captioned import Captioned, Mapped, WithNegatives
from minisd.data.postcards import Postcards


@pytest.fixture(scope="module")
def postcards():
    return Postcards("train", 40, size=16)


@pytest.fixture(scope="module")
def tokenizer(postcards):
    return Tokenizer.train(postcards.full_captions, 600, TokenizerConfig(model_max_length=40))


class Plain(Dataset):
    """Two grey pictures, as items with one entry, and no way to ask for many at once."""

    source, captions = "plain", ["a red tent", "a blue boat"]

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return (torch.full((3, 8, 8), float(index)),)


def test_items_are_pictures_and_the_ids_of_their_captions(postcards, tokenizer):
    data = Captioned(postcards, tokenizer)
    assert len(data) == 40 and data.source == "postcards"
    for index in (0, 7, -1):
        image, ids = data[index]
        assert torch.equal(image, postcards[index][0])
        assert tokenizer.decode(ids) == postcards.captions[index]
        assert ids.shape == (40,) and ids.dtype == torch.int64


def test_a_batch_is_its_items(postcards, tokenizer):
    data = Captioned(postcards, tokenizer, postcards.full_captions)
    (images, ids), *_ = DataLoader(data, batch_size=8)
    for k in range(8):
        assert torch.equal(images[k], data[k][0]) and torch.equal(ids[k], data[k][1])
        assert tokenizer.decode(ids[k]) == postcards.full_captions[k]


def test_any_data_set_with_captions_will_do(tokenizer):
    data = Captioned(Plain(), tokenizer)
    ((images, ids),) = DataLoader(data, batch_size=2)
    assert images[:, 0, 0, 0].tolist() == [0, 1]
    assert [tokenizer.decode(row) for row in ids] == Plain.captions


def test_a_caption_for_each_picture(tokenizer):
    with pytest.raises(ValueError, match="2 pictures have 1 captions"):
        Captioned(Plain(), tokenizer, ["a red tent"])


def test_no_caption_is_cut_short(tokenizer):
    short = Tokenizer(tokenizer.vocab, tokenizer.ranks, TokenizerConfig(model_max_length=5))
    Captioned(Plain(), short)  # exactly three tokens each
    with pytest.raises(ValueError, match="at most 3 tokens, got 5: 'a red tent at night'"):
        Captioned(Plain(), short, ["a red tent", "a red tent at night"])


def test_every_item_gets_a_false_caption():
    cards = Postcards("train", 40, size=16, two=0.5)
    texts = cards.full_captions + cards.negative_captions
    tokenizer = Tokenizer.train(texts, 600, TokenizerConfig(model_max_length=45))
    data = WithNegatives(Captioned(cards, tokenizer), cards.negative_captions, tokenizer)
    assert len(data) == 40 and data.source == "postcards"
    (images, ids, false), *_ = DataLoader(data, batch_size=8)
    assert torch.equal(images, cards.images()[:8])
    for index in (0, 5, -1):
        image, its_ids, other = data[index]
        assert torch.equal(image, cards[index][0])
        assert tokenizer.decode(its_ids) == cards.captions[index]
        assert tokenizer.decode(other) == cards.negative_captions[index]
    assert torch.equal(false[5], data[5][2]) and torch.equal(ids[5], data[5][1])
    with pytest.raises(ValueError, match="40 pictures have 39 negative captions"):
        WithNegatives(data.dataset, cards.negative_captions[1:], tokenizer)
    short = Tokenizer(tokenizer.vocab, tokenizer.ranks, TokenizerConfig(model_max_length=5))
    with pytest.raises(ValueError, match="at most 3 tokens"):
        WithNegatives(data.dataset, cards.negative_captions, short)


def test_every_item_gets_its_map(postcards, tokenizer):
    data = Mapped(Captioned(postcards, tokenizer), postcards)
    assert len(data) == 40 and data.source == "postcards"
    (images, ids, maps), *_ = DataLoader(data, batch_size=8)
    assert torch.equal(maps, postcards.masks()[:8])
    assert torch.equal(images, postcards.images()[:8])
    for index in (3, -1):
        image, its_ids, labels = data[index]
        assert torch.equal(image, postcards[index][0])
        assert tokenizer.decode(its_ids) == postcards.captions[index]
        assert torch.equal(labels, postcards.masks([range(40)[index]])[0])


def test_maps_for_items_that_come_one_by_one():
    data = Mapped(Plain(), Postcards("train", 2, size=8))
    ((images, maps),) = DataLoader(data, batch_size=2)
    assert images[:, 0, 0, 0].tolist() == [0, 1] and maps.shape == (2, 8, 8)


def test_a_map_for_each_item(postcards):
    with pytest.raises(ValueError, match="2 items come with 40 postcards"):
        Mapped(Plain(), postcards)

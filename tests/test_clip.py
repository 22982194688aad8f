import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers import randomise

from minisd import (
    CLIP,
    CLIPConfig,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    Tokenizer,
    VisionTransformer,
)
from minisd.clip import QuickGELU
from minisd.layers import Attention
from minisd.losses import clip_loss, contrastive_loss
from minisd.training import TrainingSettings, train

TEXT = CLIPTextConfig(50, 8, 16, 2, 4, eos_token_id=49)
VISION = CLIPVisionConfig(12, 4, 3, 16, 2, 4)
SMALL = CLIPConfig(TEXT, VISION, 8)


@pytest.fixture
def text_model(generator):
    return randomise(CLIPTextModel(TEXT), generator).eval()


@pytest.fixture
def clip(generator):
    return randomise(CLIP(SMALL), generator).eval()


def texts(b, n, generator):
    ids = torch.randint(49, (b, n), generator=generator)
    ids[:, -1] = 49
    return ids


# The tower that reads.


def test_states_have_the_width_of_the_context(text_model, generator):
    assert text_model(texts(3, 8, generator)).shape == (3, 8, 16)
    assert text_model(texts(1, 1, generator)).shape == (1, 1, 16)


@torch.no_grad()
def test_a_later_token_never_changes_an_earlier_state(text_model, generator):
    ids = texts(2, 8, generator)
    before = text_model(ids)
    for position in range(8):
        changed = ids.clone()
        changed[:, position] = (ids[:, position] + 1) % 50
        after = text_model(changed)
        torch.testing.assert_close(after[:, :position], before[:, :position], rtol=0, atol=1e-6)
        assert (after[:, position:] - before[:, position:]).abs().amax((0, 2)).min() > 1e-3


@torch.no_grad()
def test_causal_attention_is_attention_over_the_past(generator):
    """The fast line against the slow, obvious one: each position asks only those up to itself."""
    x = torch.randn(2, 5, 12, generator=generator)
    attention = randomise(Attention(12, 3, qkv_bias=True, causal=True), generator)
    causal = attention(x)
    attention.causal = False
    for i in range(5):
        torch.testing.assert_close(causal[:, i], attention(x[:, : i + 1])[:, i])


@torch.no_grad()
def test_the_order_of_words_matters(text_model):
    ids = torch.tensor([[1, 2, 49], [2, 1, 49]])
    first, second = text_model.pool(text_model(ids), ids)
    assert (first - second).abs().max() > 1e-3


def test_pooling_takes_the_first_end_token(text_model):
    ids = torch.tensor([[3, 49, 49, 49], [3, 4, 5, 49], [49, 3, 49, 3]])
    states = torch.arange(3 * 4 * 16.0).reshape(3, 4, 16)
    expected = torch.stack([states[0, 1], states[1, 3], states[2, 0]])
    assert torch.equal(text_model.pool(states, ids), expected)


def test_what_follows_the_end_is_not_pooled(text_model):
    ids = torch.tensor([[3, 4, 49, 49], [3, 4, 49, 7]])
    with torch.no_grad():
        first, second = text_model.pool(text_model(ids), ids)
    torch.testing.assert_close(first, second)


def test_quick_gelu_is_nearly_gelu():
    x = torch.linspace(-8, 8, 1000)
    assert 1e-3 < (QuickGELU()(x) - F.gelu(x)).abs().max() < 0.03


def test_v15_has_123_million_parameters_in_196_tensors():
    with torch.device("meta"):
        model = CLIPTextModel(CLIPTextConfig.SD15)
    assert sum(p.numel() for p in model.parameters()) == 123_060_480
    assert len(model.state_dict()) == 196


def test_the_books_own_towers_have_one_to_two_million_parameters():
    with torch.device("meta"):
        clip = CLIP(CLIPConfig())
    for tower in (clip.text_model, clip.vision_model):
        assert 1e6 < sum(p.numel() for p in tower.parameters()) < 2e6


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.zeros(2, 9, dtype=torch.long), r"\(b, 1 to 8\)"),
        (torch.zeros(2, 0, dtype=torch.long), r"\(b, 1 to 8\)"),
        (torch.zeros(8, dtype=torch.long), r"\(b, 1 to 8\)"),
        (torch.zeros(2, 8), "integers"),
        (torch.zeros(2, 8, dtype=torch.bool), "integers"),
        (torch.full((2, 8), 50), "0 to 49, got 50 to 50"),
        (torch.full((2, 8), -1), "0 to 49, got -1 to -1"),
    ],
)
def test_ids_that_do_not_fit_are_refused(text_model, ids, message):
    with pytest.raises(ValueError, match=message):
        text_model(ids)


def test_a_text_without_an_end_is_not_pooled(text_model):
    ids = torch.tensor([[1, 49], [1, 2]])
    with pytest.raises(ValueError, match="end token 49"):
        text_model.pool(text_model(ids), ids)


@pytest.mark.parametrize("field", ["vocab_size", "max_length", "dim", "num_layers", "num_heads"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "3", None, True])
def test_a_size_must_be_a_positive_integer(field, value):
    with pytest.raises(ValueError, match=f"{field} must be a positive integer"):
        replace(TEXT, **{field: value})


@pytest.mark.parametrize("config", [TEXT, VISION])
def test_heads_must_share_the_width(config):
    with pytest.raises(ValueError, match="multiple of num_heads"):
        replace(config, num_heads=3)


@pytest.mark.parametrize(
    ("end", "allowed"),
    [(-1, "0 to 49"), (50, "0 to 49"), (None, "an integer"), ("2", "an integer")],
)
def test_the_end_token_must_be_in_the_vocabulary(end, allowed):
    with pytest.raises(ValueError, match=f"eos_token_id must be {allowed}, got {end!r}"):
        replace(TEXT, eos_token_id=end)


# The tower that looks.


def test_an_image_becomes_one_vector(generator):
    model = VisionTransformer(VISION)
    assert model(torch.randn(5, 3, 12, 12, generator=generator)).shape == (5, 16)


@torch.no_grad()
def test_every_patch_counts_and_so_does_its_place(generator):
    model = randomise(VisionTransformer(VISION), generator)
    image = torch.randn(1, 3, 12, 12, generator=generator)
    seen = model(image)
    for y in range(0, 12, 4):
        for x in range(0, 12, 4):
            changed = image.clone()
            changed[:, :, y : y + 4, x : x + 4] += 1
            assert (model(changed) - seen).abs().max() > 1e-3
    assert (model(image.flip(3)) - seen).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("layout", [0, 1, 2, 3])
def test_with_a_layout_patches_keep_their_places(generator, layout):
    """Without position embeddings only the layout can tell where a patch is."""
    model = randomise(VisionTransformer(replace(VISION, layout=layout)), generator)
    model.position_embedding.weight.zero_()
    image = torch.randn(1, 3, 12, 12, generator=generator)
    rolled = image.roll(4, dims=3)  # by one patch
    assert model(image).shape == (1, 16)
    assert ((model(rolled) - model(image)).abs().max() > 1e-3) == (layout > 1)


@torch.no_grad()
def test_a_stem_makes_as_many_patches(generator):
    plain, with_stem = (VisionTransformer(replace(VISION, stem=stem)) for stem in ((), (8, 16)))
    image = torch.randn(2, 3, 12, 12, generator=generator)
    assert with_stem.patch_embedding(image).shape == plain.patch_embedding(image).shape
    assert with_stem(image).shape == (2, 16)


@pytest.mark.parametrize(
    "changes",
    [dict(stem=(8, 8, 8)), dict(stem=(12,)), dict(layout=-1), dict(layout=1.5), dict(layout=4)],
    ids=str,
)
def test_stems_and_layouts_that_do_not_fit(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        replace(VISION, **changes)


@pytest.mark.parametrize("shape", [(2, 3, 16, 16), (2, 3, 12, 8), (2, 1, 12, 12), (3, 12, 12)])
def test_an_image_of_another_size_is_refused(shape):
    with pytest.raises(ValueError, match=r"images must be \(b, 3, 12, 12\)"):
        VisionTransformer(VISION)(torch.zeros(shape))


def test_patches_must_tile_the_image():
    with pytest.raises(ValueError, match="image_size must be a multiple of patch_size"):
        replace(VISION, patch_size=5)


# Both.


@torch.no_grad()
def test_logits_are_scaled_cosines(clip, generator):
    images, ids = torch.randn(3, 3, 12, 12, generator=generator), texts(5, 8, generator)
    image, text = clip.encode_image(images), clip.encode_text(ids)
    assert image.shape == (3, 8) and text.shape == (5, 8)
    for vectors in (image, text):
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))
    expected = clip.logit_scale.exp() * F.cosine_similarity(image[:, None], text[None], dim=-1)
    torch.testing.assert_close(clip(images, ids), expected)


def test_the_scale_starts_at_the_papers_value_and_stops_at_a_hundred(generator):
    clip = CLIP(SMALL)
    assert clip.logit_scale.exp().item() == pytest.approx(1 / 0.07)
    clip.logit_scale.data.fill_(1000.0)
    logits = clip(torch.randn(4, 3, 12, 12, generator=generator), texts(4, 8, generator))
    assert logits.isfinite().all() and logits.abs().max() <= 100.001


class Flags(torch.utils.data.Dataset):
    """Images of one colour, and its name."""

    COLOURS = {
        "red": (1, -1, -1),
        "green": (-1, 1, -1),
        "blue": (-1, -1, 1),
        "white": (1, 1, 1),
        "black": (-1, -1, -1),
        "yellow": (1, 1, -1),
        "pink": (1, -1, 1),
        "cyan": (-1, 1, 1),
    }

    def __init__(self, tokenizer, max_length):
        self.ids = tokenizer([f"a {name} flag" for name in self.COLOURS])[:, :max_length]
        self.colours = torch.tensor(list(self.COLOURS.values())).float()

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        return 0.8 * self.colours[i][:, None, None].expand(3, 12, 12), self.ids[i]


def test_clip_learns_and_does_not_collapse():
    tokenizer = Tokenizer.train([f"a {name} flag" for name in Flags.COLOURS], 300)
    text = replace(TEXT, vocab_size=tokenizer.vocab_size, eos_token_id=tokenizer.eos_token_id)
    clip = CLIP(replace(SMALL, text=text))
    flags = Flags(tokenizer, 8)
    settings = TrainingSettings(
        steps=60, batch_size=8, learning_rate=3e-3, warmup_steps=5, ema_decay=0.9
    )
    *_, last = train(clip, clip_loss, flags, settings)
    assert last.log[-1]["loss"] < 1.0
    images = torch.stack([flags[i][0] for i in range(8)])
    with torch.no_grad():
        clip.eval()
        assert contrastive_loss(clip(images, flags.ids)) < 0.5
        assert clip(images, flags.ids).argmax(dim=1).tolist() == list(range(8))
        spread = clip.encode_image(images)
        assert (spread @ spread.T).fill_diagonal_(0).mean() < 0.5


def test_a_config_is_rebuilt_from_json():
    from dataclasses import asdict

    assert CLIPConfig(**json.loads(json.dumps(asdict(SMALL)))) == SMALL
    with pytest.raises(ValueError, match="embed_dim"):
        replace(SMALL, embed_dim=0)


@torch.no_grad()
def test_a_saved_clip_is_the_same(clip, tmp_path, generator):
    clip.save_pretrained(tmp_path)
    again = CLIP.from_pretrained(tmp_path)
    assert again.config == SMALL and not again.training
    images, ids = torch.randn(2, 3, 12, 12, generator=generator), texts(2, 8, generator)
    assert torch.equal(again(images, ids), clip(images, ids))


@torch.no_grad()
def test_the_reading_tower_can_be_saved_alone(clip, tmp_path, generator):
    """It is the text encoder of latent diffusion."""
    clip.text_model.save_pretrained(tmp_path / "text_encoder")
    alone = CLIPTextModel.from_pretrained(tmp_path, subfolder="text_encoder")
    ids = texts(2, 8, generator)
    assert torch.equal(alone(ids), clip.text_model(ids))


def test_an_unknown_setting_is_named(clip, tmp_path):
    clip.save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    raw["text"]["colour"] = 3
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match="colour"):
        CLIP.from_pretrained(tmp_path)


def test_weights_of_another_size_are_refused(text_model, tmp_path):
    text_model.save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | {"vocab_size": 60}))
    with pytest.raises(ValueError, match="token_embedding"):
        CLIPTextModel.from_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="Missing key"):
        text_model.load_state_dict({})


@pytest.mark.parametrize("kind", ["CLIPModel", "BertModel"])
def test_another_model_of_transformers_is_refused(text_model, tmp_path, kind):
    text_model.save_pretrained(tmp_path, format="diffusers")
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | {"architectures": [kind]}))
    with pytest.raises(ValueError, match=f"holds a {kind}, not a CLIPTextModel"):
        CLIPTextModel.from_pretrained(tmp_path)


def test_clip_as_a_whole_has_no_counterpart_in_diffusers(clip, tmp_path):
    with pytest.raises(ValueError, match="no counterpart"):
        clip.save_pretrained(tmp_path, format="diffusers")

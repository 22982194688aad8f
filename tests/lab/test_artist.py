import pytest
import torch
from helpers import randomise, tiny_pipeline

from minisd import DDPMScheduler, StableDiffusionPipeline, UNet, UNetConfig
from minisd.conditioning import label_context
from minisd.data.postcards import Postcards
from minisd.lab.artist import Artist
from minisd.maps import MapPipeline
from minisd.pipeline import ClassifierFreeGuidance, denoise

PLAIN = UNetConfig(8, 1, 1, (8, 8), (False, True), num_heads=2, norm_num_groups=4)
CLASSES = UNetConfig(8, 1, 1, (8, 8), (False, True), num_heads=2, norm_num_groups=4, context_dim=3)


def saved(folder, config):
    torch.manual_seed(0)
    randomise(UNet(config)).save_pretrained(folder)
    DDPMScheduler().save_pretrained(folder)
    return Artist(folder)


@pytest.fixture
def of_labels(tmp_path):
    return saved(tmp_path, CLASSES)


def seeded():
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize(
    ("negative", "null_context"), [("", torch.zeros(1, 1, 3)), ("2", torch.tensor([[[0.0, 0, 1]]]))]
)
def test_labels_are_drawn_with_guidance(of_labels, negative, null_context):
    (drawn,) = of_labels.draw(["0", "1"], 2, 4, seeded(), guidance=3.0, negative_prompt=negative)
    generator = seeded()
    x = torch.randn(2, 1, 8, 8, generator=generator)
    network = ClassifierFreeGuidance(of_labels.unet, null_context, 3.0)
    context = label_context(torch.tensor([0, 1]), 3)
    *_, last = denoise(network, DDPMScheduler(), x, 4, generator, context)
    assert torch.equal(drawn, last.x)


def test_batches_share_the_prompts_in_order(of_labels):
    prompts = ["0", "1", "2"]
    sizes = [len(batch) for batch in of_labels.draw(prompts, 3, 2, seeded(), batch_size=2)]
    assert sizes == [2, 1]


@pytest.mark.parametrize(
    ("prompts", "negative", "message"),
    [
        (["3"], "", "labels 0 to 2, not '3'"),
        (["-1"], "", "not '-1'"),
        (["a seven"], "", "not 'a seven'"),
        (["0"], "seven", "not 'seven'"),
        (None, "", "needs a prompt"),
        (["0", "1"], "", "1 pictures have 2 prompts"),
    ],
)
def test_prompts_that_are_no_labels_raise(of_labels, prompts, negative, message):
    with pytest.raises(ValueError, match=message):
        next(of_labels.states(prompts, 1, 2, seeded(), negative_prompt=negative))


@pytest.mark.parametrize(("prompts", "negative"), [(["0"], ""), (None, "0")])
def test_a_model_without_prompts_takes_none(tmp_path, prompts, negative):
    artist = saved(tmp_path, PLAIN)
    with pytest.raises(ValueError, match="takes no prompt"):
        next(artist.states(prompts, 1, 2, seeded(), negative_prompt=negative))
    (drawn,) = artist.draw(None, 2, 2, seeded())
    assert drawn.shape == (2, 1, 8, 8)


def test_each_picture_has_its_map(tmp_path):
    pipe = tiny_pipeline(MapPipeline, extra_channels=64)
    pipe.save_pretrained(tmp_path)
    artist, maps = Artist(tmp_path), Postcards("train", 3, size=32).masks()
    prompts = ["a red house", "a night", ""]
    first, second = artist.draw(prompts, 3, 2, seeded(), batch_size=2, maps=maps)
    generator = seeded()
    settings = dict(num_inference_steps=2, guidance_scale=4.0, output_type="pt")
    for got, rows in ((first, slice(0, 2)), (second, slice(2, 3))):
        pictures = pipe(
            prompts[rows], generator=generator, semantic_map=maps[rows], **settings
        ).images
        assert (got - (2 * pictures - 1)).abs().max() < 1e-5
    (without,) = artist.draw(prompts, 3, 2, seeded())
    assert not torch.allclose(without[:2], first, atol=1e-4)
    with pytest.raises(ValueError, match="3 pictures have 2 maps"):
        next(artist.states(prompts, 3, 2, seeded(), maps=maps[:2]))


@pytest.mark.parametrize(
    ("kind", "extra_channels"), [(StableDiffusionPipeline, 0), (MapPipeline, 64)]
)
def test_what_is_black_in_a_mask_keeps_its_pixels(tmp_path, kind, extra_channels):
    pipe = tiny_pipeline(kind, extra_channels)
    pipe.save_pretrained(tmp_path)
    artist, mask = Artist(tmp_path), torch.zeros(32, 32)
    mask[5:15, 3:22] = 1
    editing = dict(image=torch.rand(3, 32, 32, generator=seeded()), strength=1.0, mask=mask)
    black, kept = mask == 0, (2 * editing["image"] - 1)[:, mask == 0]
    maps = Postcards("train", 3, size=32).masks() if extra_channels else None
    prompts = ["a red house", "a night", ""]
    batches = artist.draw(prompts, 3, 2, seeded(), batch_size=2, maps=maps, **editing)
    for drawn in batches:
        assert (drawn[..., black] == kept).all()
    layout = dict(semantic_map=maps[:2]) if extra_channels else {}
    wanted = pipe(prompts[:2], num_inference_steps=2, guidance_scale=4.0, generator=seeded(),
                  output_type="pt", **layout, **editing).images  # fmt: skip
    (first, _) = artist.draw(prompts, 3, 2, seeded(), batch_size=2, maps=maps, **editing)
    assert (first - (2 * wanted - 1)).abs().max() < 1e-5
    maps = maps if maps is None else maps[:1]
    (state, *_) = artist.states(prompts[:1], 1, 2, seeded(), maps=maps, **editing)
    guess = artist.decode(state.x_start, editing["image"], mask)
    assert (guess[..., black] == kept).all()
    assert not (artist.decode(state.x_start)[..., black] == kept).any(dim=1).all()


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "euler"])
def test_no_sampler_clips_latents(tmp_path, sampler):
    tiny_pipeline().save_pretrained(tmp_path / "words")
    assert getattr(Artist(tmp_path / "words", sampler).scheduler, "clip_sample", False) is False
    assert saved(tmp_path, CLASSES).scheduler.clip_sample  # pictures do have a range


def test_a_model_that_reads_no_maps(tmp_path, of_labels):
    tiny_pipeline().save_pretrained(tmp_path / "words")
    maps = Postcards("train", 1, size=32).masks()
    for artist, prompt in ((of_labels, "0"), (of_labels, ""), (Artist(tmp_path / "words"), "a")):
        with pytest.raises(ValueError, match="does not read maps"):
            next(artist.states([prompt], 1, 2, seeded(), maps=maps))


def test_large_pictures_are_drawn_a_few_at_a_time(tmp_path, monkeypatch):
    tiny_pipeline().save_pretrained(tmp_path)
    artist, prompts = Artist(tmp_path), ["a red house"] * 5
    assert artist.pixels == 32 * 32 and not artist.pipeline.vae_slicing
    for pixels, sizes in ((2048, [2, 2, 1]), (4 * 1024, [4, 1]), (1, [1] * 5), (2**20, [5])):
        monkeypatch.setattr("minisd.lab.artist.MAX_PIXELS", pixels)
        assert [len(batch) for batch in artist.draw(prompts, 5, 1, seeded())] == sizes
    monkeypatch.setattr("minisd.lab.artist.MAX_BATCH", 3)
    assert [len(batch) for batch in artist.draw(prompts, 5, 1, seeded())] == [3, 2]
    monkeypatch.setattr("minisd.lab.artist.LARGE", 32 * 32)
    assert Artist(tmp_path).pipeline.vae_slicing


def test_an_artist_computes_in_the_dtype_asked_for(tmp_path, of_labels):
    tiny_pipeline().save_pretrained(tmp_path / "words")
    for model, prompt in ((tmp_path, "1"), (tmp_path / "words", "a red house")):
        wide, narrow = Artist(model), Artist(model, dtype=torch.bfloat16)
        assert next(narrow.unet.parameters()).dtype == torch.bfloat16
        (a,), (b,) = (each.draw([prompt], 1, 2, seeded()) for each in (wide, narrow))
        assert a.dtype == b.dtype == torch.float32 and a.shape == b.shape
        with pytest.raises(ValueError, match="float16 needs a GPU"):
            Artist(model, dtype=torch.float16)


def test_pixels_that_are_not_finite_are_an_error(of_labels):
    with pytest.raises(FloatingPointError, match="NaN or infinity"):
        of_labels.decode(torch.full((1, 1, 8, 8), float("inf")))

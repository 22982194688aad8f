import json

import numpy as np
import pytest
import torch
from helpers import tiny_pipeline
from PIL import Image

from minisd import StableDiffusionPipeline
from minisd.book.plots import image_grid
from minisd.data.postcards import Postcards
from minisd.files import write_json
from minisd.maps import COLOURS, MapPipeline, paint_maps, read_map
from minisd.stable_diffusion import INDEX

SETTINGS = dict(num_inference_steps=2, output_type="pt")
MAPS = Postcards("train", 3, size=32).masks()


def seeded():
    return torch.Generator().manual_seed(4)


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline(MapPipeline, extra_channels=64)


def images(pipe, prompt="a red house", semantic_map=None, **settings):
    settings = SETTINGS | settings
    if semantic_map is not None:
        settings["semantic_map"] = semantic_map
    return pipe(prompt, generator=seeded(), **settings).images


def test_a_map_survives_being_painted(tmp_path):
    painted = paint_maps(MAPS)
    assert painted.shape == (3, 3, 32, 32) and painted.abs().max() <= 1
    image_grid(painted[1:2], scale=1, gap=0).save(tmp_path / "map.png")
    assert torch.equal(read_map(Image.open(tmp_path / "map.png")), MAPS[1])
    indexed = Image.open(tmp_path / "map.png").convert("P", palette=Image.Palette.ADAPTIVE)
    assert torch.equal(read_map(indexed), MAPS[1])
    assert torch.equal(paint_maps(MAPS.to(torch.uint8)), painted)


def test_a_colour_that_no_label_has_is_named():
    pixels = np.full((4, 4, 3), list(bytes.fromhex(COLOURS["sky"][1:])), dtype="uint8")
    pixels[2, 3] = 1, 2, 255
    with pytest.raises(ValueError, match="#0102ff at row 2, column 3; .* ground #a58f62"):
        read_map(Image.fromarray(pixels))


def test_map_and_words_both_count(pipe):
    plain = images(pipe)
    assert not torch.allclose(images(pipe, semantic_map=MAPS[0]), plain, atol=1e-4)
    one, other = (images(pipe, semantic_map=labels) for labels in MAPS[:2])
    assert not torch.allclose(one, other, atol=1e-4)
    night = images(pipe, "a night", MAPS[0])
    assert not torch.allclose(one, night, atol=1e-4)
    assert torch.equal(one, images(pipe, semantic_map=MAPS[0].to(torch.uint8)))


def test_one_map_serves_all_pictures_and_several_one_each(pipe):
    prompts, noise = ["a red house", "a night"], torch.randn(2, 4, 8, 8, generator=seeded())
    both = images(pipe, prompts, MAPS[0], latents=noise)
    own = images(pipe, prompts, MAPS[:2], latents=noise)
    for i, prompt in enumerate(prompts):
        for pictures, labels in ((both, MAPS[0]), (own, MAPS[i])):
            alone = images(pipe, prompt, labels, latents=noise[i : i + 1])
            assert (pictures[i] - alone[0]).abs().max() < 1e-5


def test_maps_are_for_all_pictures_or_one_for_each(pipe):
    for copies in (2, 3):
        with pytest.raises(ValueError, match=f"{2 * copies} pictures cannot share 2 maps"):
            images(pipe, ["a red house", "a night"], MAPS[:2], num_images_per_prompt=copies)
    with pytest.raises(ValueError, match="3 pictures cannot share 2 maps"):
        images(pipe, ["a red house"] * 3, MAPS[:2])
    one = images(pipe, ["a red house"] * 2, MAPS[:1])
    assert torch.equal(one, images(pipe, ["a red house"] * 2, MAPS[0]))


def test_how_it_saves_memory_is_not_forgotten_with_a_map():
    pipe, sizes = tiny_pipeline(MapPipeline, extra_channels=64), []
    wanted = images(pipe, ["a red house", "a night"], MAPS[0])
    pipe.vae.decoder.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    pipe.enable_vae_slicing()
    pipe.enable_model_cpu_offload("cpu")
    assert (images(pipe, ["a red house", "a night"], MAPS[0]) - wanted).abs().max() < 1e-5
    assert sizes == [1, 1] and pipe.on_card is pipe.vae.decoder


def test_its_own_latents_are_those_of_its_pictures(pipe):
    assert pipe.latent_shape(2, 32, 16) == (2, 4, 8, 4)


def test_the_loop_can_be_watched_with_a_map(pipe):
    states = list(pipe.denoise("", num_inference_steps=3, generator=seeded(), semantic_map=MAPS[0]))
    last = images(pipe, "", MAPS[0], num_inference_steps=3, output_type="latent")
    assert len(states) == 3 and torch.equal(states[-1].x, last)


def test_a_map_goes_together_with_a_picture_and_a_mask(pipe):
    picture, mask = torch.rand(3, 32, 32, generator=seeded()), torch.zeros(32, 32)
    mask[8:24, 8:24] = 1
    settings = dict(image=picture, strength=1.0, mask=mask, output_type="latent")
    plain, mapped = (images(pipe, semantic_map=m, **settings) for m in (None, MAPS[0]))
    inside = torch.zeros(1, 1, 8, 8)
    inside[..., 2:6, 2:6] = 1
    assert torch.equal(plain * (1 - inside), mapped * (1 - inside))
    assert not torch.allclose(plain, mapped, atol=1e-4)
    settings["output_type"] = "pt"
    (drawn,) = images(pipe, semantic_map=MAPS[0], **settings)
    assert torch.equal(drawn * (1 - mask), picture * (1 - mask))


def test_it_is_saved_and_loaded_with_its_kind(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    again = MapPipeline.from_pretrained(tmp_path)
    assert again.unet.config == pipe.unet.config and again.num_labels == 4
    assert torch.equal(images(again, semantic_map=MAPS[0]), images(pipe, semantic_map=MAPS[0]))
    with pytest.raises(ValueError, match="holds a MapPipeline, not a StableDiffusionPipeline"):
        StableDiffusionPipeline.from_pretrained(tmp_path)


def test_its_system_lies_beside_it_or_is_bundled(pipe, tmp_path, monkeypatch):
    """The folder may be a stranger's, and its index must choose neither a download nor a path."""

    def asked(*arguments, **settings):
        raise AssertionError(f"the hub was asked for {arguments}")

    monkeypatch.setattr("huggingface_hub.snapshot_download", asked)
    system = tiny_pipeline()
    system.vae = pipe.vae
    system.save_pretrained(tmp_path / "base_model")
    pipe.unet.save_pretrained(tmp_path / "maps" / "unet")
    pipe.scheduler.save_pretrained(tmp_path / "maps" / "scheduler")
    index = {"_class_name": "MapPipeline", "base_model": "base_model"}
    write_json(tmp_path / "maps" / INDEX, index)
    again = MapPipeline.from_pretrained(tmp_path / "maps")
    assert torch.equal(images(again, semantic_map=MAPS[0]), images(pipe, semantic_map=MAPS[0]))
    for system in (
        "evil/anything",
        str(tmp_path / "base_model"),
        "../system",
        "gone",
        3,
        ["base_model"],
    ):
        write_json(tmp_path / "maps" / INDEX, index | {"base_model": system})
        with pytest.raises(ValueError, match="must be bundled .* or lie beside"):
            MapPipeline.from_pretrained(tmp_path / "maps")


@pytest.mark.parametrize(
    ("semantic_map", "message"),
    [
        (MAPS[0, :16], r"picture has \(8, 8\) places .* \(4, 8\): a map must be as large"),
        (Postcards("train", 1).masks()[0], "a map must be as large as its picture"),
        (MAPS[0, :30], "multiples of 4, got a map of 30 x 32"),
        (MAPS[0] + 1, "labels 0 to 3, got 1 to"),
        (MAPS[0].float(), "whole numbers, got torch.float32"),
        (MAPS, "1 pictures cannot share 3 maps"),
        (MAPS[None], r"\(h, w\) or \(b, h, w\) of labels, got \(1, 3, 32, 32\)"),
        (MAPS[0].numpy(), "must be a tensor|got ndarray"),
        ("map.png", "got str"),
    ],
)
def test_what_is_no_map_for_it(pipe, semantic_map, message):
    with pytest.raises(ValueError, match=message):
        images(pipe, semantic_map=semantic_map)


@pytest.mark.parametrize("extra_channels", [0, 5, 16])
def test_a_network_without_room_for_a_map(extra_channels):
    with pytest.raises(ValueError, match=rf"4 \+ k x 16 input channels.* has {4 + extra_channels}"):
        tiny_pipeline(MapPipeline, extra_channels)


@pytest.mark.parametrize("base", ["owner/model", "../elsewhere", "/etc", "~", "", 7, ["postcards"]])
def test_a_folder_does_not_choose_a_download(tmp_path, monkeypatch, base):
    """Whoever loads a folder that a stranger has made fetches nothing that it names."""
    monkeypatch.setattr("huggingface_hub.snapshot_download", None)
    index = {"_class_name": "MapPipeline", "base_model": base}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="refers to a model .*: it must be bundled"):
        MapPipeline.from_pretrained(tmp_path)

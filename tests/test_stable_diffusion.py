"""The pipeline of minisd.pipeline, from words to pictures, on small random networks."""

import json
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import randomise, tiny_pipeline
from PIL import Image

from minisd import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    StableDiffusionPipeline,
    UNet,
    UNetConfig,
)
from minisd.data.images import as_tensor, as_type
from minisd.editing import paste
from minisd.lab.artist import Artist
from minisd.stable_diffusion import LORA

SETTINGS = dict(num_inference_steps=3, output_type="pt")
PROMPT = "a red house by the sea at night"


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


def images(pipe, prompt=PROMPT, seed=0, **settings):
    return pipe(prompt, **SETTINGS | dict(generator=seeded(seed)) | settings).images


def test_the_same_seed_gives_the_same_picture(pipe):
    assert torch.equal(images(pipe), images(pipe))
    assert not torch.equal(images(pipe), images(pipe, seed=1))
    assert not torch.equal(images(pipe), images(pipe, "a blue tent in a storm"))


def test_a_batch_is_its_pictures_one_by_one(pipe):
    prompts = [f"a {colour} house" for colour in ("red", "blue", "green", "white")] * 2
    noise = torch.randn(8, 4, 8, 8, generator=seeded())
    together = images(pipe, prompts, latents=noise)
    alone = torch.cat(
        [images(pipe, p, latents=n[None]) for p, n in zip(prompts, noise, strict=True)]
    )
    assert (together - alone).abs().max() < 1e-5
    assert torch.equal(images(pipe, prompts), together)  # the noise of seed 0
    assert torch.equal(noise, torch.randn(8, 4, 8, 8, generator=seeded()))  # and still is


def test_several_pictures_for_each_prompt(pipe):
    prompts = ["a red house", "a blue tent"]
    several = images(pipe, prompts, num_images_per_prompt=2)
    assert torch.equal(several, images(pipe, [prompts[0], prompts[0], prompts[1], prompts[1]]))


def test_guidance_and_what_to_keep_away_from(pipe):
    plain = images(pipe, guidance_scale=1)
    assert not torch.allclose(plain, images(pipe, guidance_scale=3), atol=1e-4)
    assert torch.equal(plain, images(pipe, guidance_scale=1, negative_prompt="night"))
    kept_away = images(pipe, guidance_scale=3, negative_prompt="night")
    assert not torch.allclose(kept_away, images(pipe, guidance_scale=3), atol=1e-5)
    # away from the prompt itself, guidance has no direction left
    same = images(pipe, guidance_scale=3, negative_prompt=PROMPT)
    assert (same - plain).abs().max() < 1e-4


def test_kinds_of_output(pipe):
    tensor = images(pipe)
    assert tensor.shape == (1, 3, 32, 32) and 0 <= tensor.min() < tensor.max() <= 1
    array = images(pipe, output_type="np")
    assert np.array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
    (picture,) = images(pipe, output_type="pil")
    assert isinstance(picture, Image.Image) and picture.size == (32, 32)
    assert np.array_equal(np.asarray(picture), (array[0] * 255).round().astype("uint8"))
    latents = images(pipe, output_type="latent")
    assert latents.shape == (1, 4, 8, 8)
    assert torch.equal(pipe.decode(latents), tensor)


def test_another_size(pipe):
    assert images(pipe, height=16, width=48).shape == (1, 3, 16, 48)


def test_the_loop_can_be_watched(pipe):
    states = list(pipe.denoise(PROMPT, num_inference_steps=5, generator=seeded()))
    assert [int(state.t) for state in states] == pipe.scheduler.timesteps.tolist()
    last = images(pipe, num_inference_steps=5, output_type="latent")
    assert torch.equal(states[-1].x, last)
    assert all(pipe.decode(state.x_start).shape == (1, 3, 32, 32) for state in states)


def test_an_empty_prompt_draws_anything(pipe):
    plain, guided = (images(pipe, "", guidance_scale=scale) for scale in (1, 7))
    assert (plain - guided).abs().max() < 1e-5


def test_what_is_cut_from_a_long_prompt_is_shown(pipe):
    long = "a red house " * 20
    with pytest.warns(UserWarning, match="only 31 tokens are read, not this: ' ?(a|red|house)"):
        cut = images(pipe, long)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images(pipe, PROMPT)
    with pytest.warns(UserWarning):
        assert torch.equal(cut, images(pipe, long + "in the snow"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(prompt=[]), "no prompts"),
        (dict(prompt=7), "prompt must be text"),
        (dict(prompt=["a", 7]), "prompt must be text"),
        (dict(output_type="jpeg"), "unknown output_type 'jpeg'"),
        (dict(num_inference_steps=0), "num_inference_steps"),
        (dict(num_inference_steps=1001), "num_inference_steps"),
        (dict(height=30), "multiples of 8, got 30 and 32"),
        (dict(width=-8), "multiples of 8"),
        (dict(height=0), "multiples of 8, got 0 and 32"),
        (dict(width=0), "multiples of 8, got 32 and 0"),
        (dict(height=16, latents=torch.zeros(1, 4, 8, 8)), "height and width are 16 and None, but"),
        (dict(width=64, image=torch.rand(3, 32, 32)), "size of the image is 32 and 32 pixels"),
        (dict(image=torch.rand(3, 32, 32), latents=torch.zeros(1, 4, 8, 4)), "size of the latents"),
        (dict(latents=torch.zeros(1, 4, 8)), r"latents must be \(1, 4, h, w\)"),
        (dict(generator=[seeded(0)] * 2), "1 pictures have 2 generators: give one for all"),
        (dict(generator=[]), "1 pictures have 0 generators: give one"),
        (dict(num_images_per_prompt=0), "num_images_per_prompt"),
        (dict(guidance_scale=float("nan")), "guidance_scale"),
        (dict(prompt=["a"] * 3, negative_prompt=["b"] * 2), "3 prompts have 2 negative"),
        (dict(latents=torch.zeros(2, 4, 8, 8)), r"latents must be \(1, 4, h, w\)"),
        (dict(latents=torch.full((1, 4, 8, 8), float("nan"))), "finite"),
    ],
)
def test_what_does_not_fit(pipe, settings, message):
    prompt = settings.pop("prompt", PROMPT)
    with pytest.raises(ValueError, match=message):
        images(pipe, prompt, **settings)


def test_parts_that_do_not_fit(pipe):
    unet = UNet(UNetConfig(8, 4, 4, (8, 8), (True, False), 1, 2, 4, context_dim=10))
    with pytest.raises(ValueError, match="text size 12 meets 10"):
        StableDiffusionPipeline(pipe.tokenizer, pipe.text_encoder, unet, pipe.vae, pipe.scheduler)


def test_half_precision_needs_a_gpu(pipe, tmp_path):
    pipe.save_pretrained(tmp_path, dtype=torch.float16)
    half = StableDiffusionPipeline.from_pretrained(tmp_path, torch_dtype=torch.float16)
    for refused in (lambda: half.to("cpu"), lambda: images(half), lambda: half.denoise(PROMPT)):
        with pytest.raises(ValueError, match="float16 needs a GPU"):
            refused()
    with pytest.raises(ValueError, match="float16 needs a GPU"):
        Artist(str(tmp_path), dtype=torch.float16)
    again = StableDiffusionPipeline.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert images(again.to("cpu")).isfinite().all()


@pytest.mark.parametrize(
    "arguments", [(torch.float16,), ("cpu", torch.float16), (torch.zeros(1).half(),)], ids=str
)
def test_what_is_refused_leaves_the_networks_as_they_were(arguments):
    pipe = tiny_pipeline()
    wanted = images(pipe)
    with pytest.raises(ValueError, match="float16 needs a GPU"):
        pipe.to(*arguments)
    assert pipe.dtype == torch.float32 and torch.equal(images(pipe), wanted)


# Numbers that overflow


def overflowing(pipe, monkeypatch, dtypes):
    """Let the decoder return one NaN in these precisions."""
    decode = pipe.vae.decode

    def broken(latents):
        image = decode(latents)
        if latents.dtype in dtypes:
            image[-1, 0, 0, 0] = float("nan")
        return image

    monkeypatch.setattr(pipe.vae, "decode", broken)


def test_what_overflows_is_decoded_again_in_float32(monkeypatch):
    pipe = tiny_pipeline().to(torch.bfloat16)
    latents = torch.randn(2, 4, 8, 8, generator=seeded()).bfloat16()
    narrow, weights = pipe.decode(latents), pipe.vae.state_dict()
    overflowing(pipe, monkeypatch, [torch.bfloat16])
    with pytest.warns(UserWarning, match="the decoder overflows in torch.bfloat16"):
        wide = pipe.decode(latents)
    assert wide.isfinite().all() and 0 < (wide - narrow).abs().max() < 0.05
    for name, tensor in pipe.vae.state_dict().items():
        assert tensor.dtype == torch.bfloat16 and torch.equal(tensor, weights[name])
    with pytest.warns(UserWarning, match="overflows"):
        images(pipe)


def test_no_number_that_is_not_finite_becomes_a_black_pixel(pipe, monkeypatch):
    with pytest.raises(FloatingPointError, match="the latents are not finite"):
        pipe.decode(torch.full((1, 4, 8, 8), float("nan")))
    overflowing(pipe, monkeypatch, [torch.float32])
    with pytest.raises(FloatingPointError, match="the decoder returned NaN or infinity"):
        images(pipe)


# A generator for each picture


@pytest.mark.parametrize("scheduler", [None, EulerAncestralDiscreteScheduler()], ids=str)
@pytest.mark.parametrize("image", [False, True], ids=["from noise", "from a picture"])
def test_each_picture_is_that_of_its_generator_alone(pipe, scheduler, image, monkeypatch):
    if scheduler is not None:
        monkeypatch.setattr(pipe, "scheduler", scheduler)
    settings = dict(image=torch.rand(3, 32, 32, generator=seeded(9))) if image else {}
    prompts, seeds = ["a red house", "a blue tent"], [3, 1, 4, 1]
    together = images(
        pipe, prompts, generator=[*map(seeded, seeds)], num_images_per_prompt=2, **settings
    )
    for drawn, prompt, seed in zip(
        together, [p for p in prompts for _ in "ab"], seeds, strict=True
    ):
        assert (drawn - images(pipe, prompt, seed=seed, **settings)[0]).abs().max() < 1e-5
    assert (together[1] - together[0]).abs().max() > 1e-3


def test_saved_and_loaded_it_draws_the_same(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    again = StableDiffusionPipeline.from_pretrained(tmp_path)
    assert type(again.scheduler) is DPMSolverMultistepScheduler
    assert torch.equal(images(again), images(pipe))
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]


@pytest.mark.parametrize("part", ["unet", "scheduler", "tokenizer", "model_index.json"])
def test_a_part_that_is_missing(pipe, tmp_path, part):
    pipe.save_pretrained(tmp_path)
    (tmp_path / part).rename(tmp_path.parent / f"{tmp_path.name}-{part}")
    with pytest.raises(ValueError, match=part):
        StableDiffusionPipeline.from_pretrained(tmp_path)


def test_a_lora_is_not_loaded_and_that_is_said(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "both")
    for folder in ("both", "alone"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / LORA).touch()
    with pytest.warns(UserWarning, match=f"{LORA} of .* is not loaded"):
        StableDiffusionPipeline.from_pretrained(tmp_path / "both")
    with pytest.raises(ValueError, match="alone holds a LoRA"):
        StableDiffusionPipeline.from_pretrained(tmp_path / "alone")


def test_noise_is_drawn_in_the_precision_of_the_networks(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    half = StableDiffusionPipeline.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    drawn = half.make_noise((1, 4, 8, 8), seeded(), None)
    assert torch.equal(drawn, torch.randn(1, 4, 8, 8, generator=seeded(), dtype=torch.bfloat16))


def test_pictures_decoded_one_by_one_are_the_same(pipe):
    latents = torch.randn(3, 4, 8, 8, generator=seeded())
    sizes, together = [], pipe.decode(latents)
    hook = pipe.vae.decoder.register_forward_pre_hook(
        lambda _, inputs: sizes.append(len(inputs[0]))
    )
    pipe.enable_vae_slicing()
    try:
        assert (pipe.decode(latents) - together).abs().max() < 1e-6
    finally:
        pipe.vae_slicing = False
        hook.remove()
    assert sizes == [1, 1, 1]


def test_offloaded_it_draws_the_same_and_only_one_network_is_on_the_card(monkeypatch):
    """The card is the CPU here, and the moves are written down instead of made."""
    pipe, moves = tiny_pipeline(), []
    wanted = images(pipe)
    picture = torch.rand(3, 32, 32, generator=seeded(5))
    varied = images(pipe, image=picture)
    networks = {
        "text": pipe.text_encoder, "encoder": pipe.vae.encoder, "unet": pipe.unet,
        "decoder": pipe.vae.decoder,
    }  # fmt: skip
    names = {id(network): name for name, network in networks.items()}
    pipe.enable_model_cpu_offload("cpu")
    card = pipe.offload_device = torch.device("cpu", 0)  # the same memory, another name
    assert pipe.device == card
    to, there = torch.nn.Module.to, []

    def watched(module, device):
        if device == card:
            there.append(names[id(module)])
        else:
            there.remove(names[id(module)])
        moves.append((names[id(module)], list(there)))
        return to(module, device)

    monkeypatch.setattr(torch.nn.Module, "to", watched)
    assert torch.equal(images(pipe), wanted)
    assert torch.equal(images(pipe, image=picture), varied)
    came = [name for name, there in moves if name in there]
    assert came == ["text", "unet", "decoder", "text", "encoder", "unet", "decoder"]
    assert all(len(there) <= 1 for _, there in moves)


def test_channels_last_is_the_same_pipeline(pipe):
    again = tiny_pipeline().to(memory_format=torch.channels_last)
    assert again.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert (images(again) - images(pipe)).abs().max() < 1e-5


def test_an_interrupted_save_is_no_pipeline(pipe, tmp_path, monkeypatch):
    pipe.save_pretrained(tmp_path)

    def full(*_):
        raise OSError("No space left")

    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(pipe.vae, "save_pretrained", full)
        pipe.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"model_index\.json does not exist"):
        StableDiffusionPipeline.from_pretrained(tmp_path)
    pipe.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="got 'onnx'"):
        pipe.save_pretrained(tmp_path, format="onnx")
    StableDiffusionPipeline.from_pretrained(tmp_path)


def test_another_pipeline_is_refused(pipe, tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(ValueError, match="holds a FluxPipeline"):
        StableDiffusionPipeline.from_pretrained(tmp_path)


def test_any_scheduler_will_do(pipe):
    try:
        own = pipe.scheduler
        for kind in (DDIMScheduler, EulerAncestralDiscreteScheduler):
            pipe.scheduler = kind()
            assert torch.equal(images(pipe), images(pipe))
    finally:
        pipe.scheduler = own


def test_an_artist_draws_what_the_pipeline_draws(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    artist = Artist(str(tmp_path))
    (drawn,) = artist.draw([PROMPT], 1, 3, seeded(), guidance=2.0)
    assert torch.allclose(drawn, 2 * images(pipe, guidance_scale=2.0) - 1)
    with pytest.raises(ValueError, match="needs a prompt"):
        list(artist.draw(None, 1, 3, seeded()))


def test_artists_of_the_other_kinds(tmp_path):
    for name, width in (("plain", None), ("labels", 10)):
        config = UNetConfig(8, 1, 1, (8, 8), (False, True), 1, 2, 4, context_dim=width)
        randomise(UNet(config), seeded()).save_pretrained(tmp_path / name)
        DDIMScheduler().save_pretrained(tmp_path / name)
    plain, labels = Artist(str(tmp_path / "plain")), Artist(str(tmp_path / "labels"), "euler")
    assert [len(batch) for batch in plain.draw(None, 5, 2, seeded(), batch_size=3)] == [3, 2]
    (a,) = labels.draw(["7", "3"], 2, 2, seeded())
    (b,) = labels.draw(["7", "4"], 2, 2, seeded())
    assert torch.equal(a[0], b[0]) and not torch.equal(a[1], b[1])
    for prompts, message in (
        (["house"], "labels 0 to 9"),
        (["10"], "labels 0 to 9"),
        (None, "needs a prompt"),
    ):
        with pytest.raises(ValueError, match=message):
            list(labels.draw(prompts, 1, 2, seeded()))
    with pytest.raises(ValueError, match="takes no prompt"):
        list(plain.draw(["7"], 1, 2, seeded()))


def test_pictures_as_types():
    one = torch.rand(2, 3, 4, 5)
    assert as_type(one, "pt") is one and as_type(one, "np").shape == (2, 4, 5, 3)
    assert [picture.size for picture in as_type(one, "pil")] == [(5, 4)] * 2


# From a picture


@pytest.fixture(scope="module")
def picture():
    return torch.rand(3, 32, 32, generator=seeded(5))


def test_a_picture_in_any_form(pipe, picture):
    as_pil = as_type(picture[None], "pil")[0]
    pixels = torch.from_numpy(np.array(as_pil)).permute(2, 0, 1) / 255
    results = [images(pipe, image=image, strength=0.7) for image in (as_pil, pixels, pixels[None])]
    assert torch.equal(results[1], results[2])
    assert (results[0] - results[1]).abs().max() < 1e-5


@pytest.mark.parametrize("mode", ["P", "L", "1", "RGBA", "CMYK", "LA"])
def test_a_picture_of_any_mode_is_read_as_rgb(pipe, picture, mode):
    converted = as_type(picture[None], "pil")[0].convert(mode)
    wanted = images(pipe, image=converted.convert("RGB"))
    assert torch.equal(images(pipe, image=converted), wanted)


def test_a_picture_is_upright_and_on_white(pipe):
    exif = Image.Exif()
    exif[0x112] = 6  # turned by a quarter when it is shown
    for mode in ("RGB", "L"):
        wide = Image.new(mode, (64, 32))
        wide.info["exif"] = exif.tobytes()
        assert as_tensor(wide, mode).shape == (1, len(mode), 64, 32)
    clear = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    clear.paste((200, 30, 30, 255), (8, 8, 16, 16))
    assert as_tensor(clear, "RGB")[0, :, 0, 0].tolist() == [1, 1, 1]
    assert as_tensor(clear, "RGB")[0, 0, 9, 9] == torch.tensor(200 / 255)
    assert as_tensor(clear, "L")[0, 0, 0, 0] == 0  # nothing in a mask is drawn anew


def test_sixteen_bits_are_scaled_and_not_cut_off():
    grey = Image.fromarray(np.array([[0, 256, 65535, 32768]], dtype="uint16"))
    assert grey.mode == "I;16"
    assert (as_tensor(grey, "L") * 255).flatten().tolist() == [0, 1, 255, 128]


@pytest.mark.parametrize("mode", ["P", "RGB", "RGBA", "1"])
def test_a_mask_of_any_mode_is_read_as_grey(pipe, picture, mode):
    grey = Image.new("L", (32, 32))
    grey.paste(255, (8, 8, 16, 24))
    wanted = images(pipe, image=picture, mask=grey)
    assert torch.equal(images(pipe, image=picture, mask=grey.convert(mode)), wanted)


def test_a_mask_keeps_the_rest(pipe, picture):
    mask = torch.zeros(32, 32)
    mask[5, 5] = 1  # one pixel: its whole cell of the latents is drawn
    kept = pipe.encode_image(picture, seeded())
    drawn = images(pipe, image=picture, mask=mask, strength=1.0, output_type="latent")
    assert torch.equal(drawn[..., 2:, :], kept[..., 2:, :])
    assert (drawn - kept)[..., 1, 1].abs().min() > 0
    as_pil = Image.fromarray((mask * 255).byte().numpy())
    again = images(pipe, image=picture, mask=as_pil, strength=1.0, output_type="latent")
    assert torch.equal(drawn, again)


@pytest.fixture
def mask():
    mask = torch.zeros(32, 32)
    mask[5:15, 3:22] = 1  # its edges run through places of the latents
    return mask


def keeps_what_is_black(pipe, picture, mask, **settings):
    """Whether every pixel is the picture's, or where the mask is white the decoder's."""
    settings = dict(image=picture, mask=mask, strength=1.0) | settings
    drawn = images(pipe, **settings)
    decoded = pipe.decode(images(pipe, **settings | dict(output_type="latent")))
    assert (decoded - picture).abs().amin(dim=1).median() > 1e-3  # there is something to put back
    return torch.equal(drawn, torch.where(mask == 1, decoded, picture))


@pytest.mark.parametrize(
    "settings",
    [{}, dict(num_images_per_prompt=3), dict(prompt=["a house", "a tent"]), dict(strength=0.5)],
)
def test_what_is_black_keeps_its_pixels(pipe, picture, mask, settings):
    assert keeps_what_is_black(pipe, picture, mask, **settings)


@pytest.mark.parametrize(
    "fault",
    [
        lambda images, image, mask: images,
        lambda images, image, mask: paste(images, image, 1 - mask),
        lambda images, image, mask: paste(images, image, F.max_pool2d(mask, 5, 1, 2)),
        lambda images, image, mask: paste(images, image, mask.mT),
        lambda images, image, mask: paste(images, (image * 255).floor() / 255, mask),
        lambda images, image, mask: torch.cat([paste(images[:1], image, mask), images[1:]]),
    ],
    ids=["forgotten", "inside out", "too wide", "transposed", "rounded", "only the first"],
)
def test_pixels_that_are_not_kept_are_seen(pipe, picture, mask, fault, monkeypatch):
    monkeypatch.setattr("minisd.stable_diffusion.paste", fault)
    assert not keeps_what_is_black(pipe, picture, mask, num_images_per_prompt=2)


def test_pixels_are_kept_in_every_output(pipe, picture, mask):
    as_pil = as_type(picture[None], "pil")[0]
    white = as_type(mask[None, None].expand(1, 3, -1, -1), "pil")[0]
    settings = dict(image=as_pil, mask=white, strength=1.0)
    black = mask.numpy() == 0
    (drawn,) = images(pipe, **settings, output_type="pil")
    assert np.array_equal(np.asarray(drawn)[black], np.asarray(as_pil)[black])
    array = images(pipe, **settings, output_type="np")[0]
    assert np.array_equal(array[black], np.asarray(as_pil)[black].astype("float32") / 255)
    unmasked = images(pipe, image=as_pil, strength=1.0)
    assert not np.array_equal(array[black], unmasked[0].permute(1, 2, 0).numpy()[black])


def test_pixels_are_kept_in_any_precision_and_one_by_one(picture, mask):
    pipe = tiny_pipeline().to(torch.bfloat16)
    assert keeps_what_is_black(pipe, picture, mask)
    pipe.enable_vae_slicing()
    assert keeps_what_is_black(pipe, picture, mask, num_images_per_prompt=2)


def test_a_light_grey_is_white_and_a_dark_one_black(pipe, picture):
    grey = Image.new("L", (32, 32), 127)
    grey.paste(128, (3, 5, 22, 15))
    settings = dict(image=picture, strength=1.0)
    drawn = images(pipe, mask=grey, **settings)
    assert torch.equal(drawn, images(pipe, mask=grey.point(lambda v: 255 * (v > 127)), **settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(image="x.png"), "PIL image or a tensor, got str"),
        (dict(image=torch.rand(1, 32, 32)), r"3 channels, \(3, h, w\): got \(1, 32, 32\)"),
        (
            dict(image=torch.rand(3, 1, 32, 32)),
            r"a picture must have .* got \(3, 1, 32, 32\)",
        ),  # three grey pictures
        (dict(image=torch.rand(2, 3, 32, 32)), r"a picture must have .* got \(2, 3, 32, 32\)"),
        (dict(image=torch.rand(3, 0, 32)), r"got \(3, 0, 32\)"),
        (dict(image=2 * torch.ones(3, 32, 32)), r"in \[0,1\]"),
        (dict(image=torch.rand(3, 30, 32)), "multiples of 8, got 30 and 32"),
        (dict(image=torch.rand(3, 32, 36)), "multiples of 8, got 32 and 36"),  # the U-Net halves
        (dict(image=Image.new("I", (32, 32))), "8 or 16 bits a channel, this one is I"),
        (dict(image=Image.new("F", (32, 32))), "8 or 16 bits a channel, this one is F"),
        (dict(image=torch.rand(3, 32, 32), strength=0.0), "strength must be above 0"),
        (dict(image=torch.rand(3, 32, 32), strength=1.01), "at most 1, got 1.01"),
        (dict(image=torch.rand(3, 32, 32), strength=float("nan")), "at most 1, got nan"),
        (dict(image=torch.rand(3, 32, 32), mask=torch.ones(32, 40)), "as large as the image"),
        (dict(image=torch.rand(3, 32, 32), mask=Image.new("L", (64, 64), 255)), "32 x 32"),
        (dict(image=torch.rand(3, 32, 32), mask=Image.new("L", (32, 32))), "mask is empty"),
        (dict(image=torch.rand(3, 32, 32), mask=torch.ones(16, 32)), "as large as the image"),
        (dict(image=torch.rand(3, 32, 32), mask=torch.zeros(32, 32)), "mask is empty"),
        (dict(mask=torch.ones(32, 32)), "a mask needs an image"),
    ],
)
def test_pictures_that_do_not_fit(pipe, settings, message):
    with pytest.raises(ValueError, match=message):
        images(pipe, **settings)

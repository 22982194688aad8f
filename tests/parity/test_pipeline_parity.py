"""minisd's text-to-image pipeline and diffusers' are the same function, from the same folder."""

import shutil

import diffusers
import pytest
import torch
import transformers
from helpers import randomise

from minisd import (
    AutoencoderKL,
    CLIPTextConfig,
    CLIPTextModel,
    DDIMScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    Tokenizer,
    UNet,
    UNetConfig,
    VAEConfig,
)

TOLERANCE = 1e-5  # largest absolute difference, float32
V15 = dict(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
)  # fmt: skip
SCHEDULERS = {
    "pndm": PNDMScheduler(**V15, skip_prk_steps=True),
    "ddim": DDIMScheduler(**V15, set_alpha_to_one=False, clip_sample=False),
}
PROMPTS = ["a red temple by the sea at sunset", "An image of Angkor, with a sunset sky."]


def build(tokenizer: Tokenizer, scheduler, generator) -> StableDiffusionPipeline:
    """A small random pipeline of Stable Diffusion's architecture."""
    text = CLIPTextConfig(tokenizer.vocab_size, 77, 16, 2, 2, tokenizer.eos_token_id)
    parts = (
        CLIPTextModel(text),
        UNet(UNetConfig(8, 4, 4, (8, 16), (True, False), 1, 2, 4, context_dim=16)),
        AutoencoderKL(VAEConfig(32, 3, 4, (8, 8, 16), 1, 4, patch_size=1, scaling_factor=0.18215)),
    )
    parts = [randomise(part, generator).eval() for part in parts]
    with torch.no_grad():  # so that guided latents stay as large as those of a trained network
        parts[1].conv_out.weight.mul_(0.1)
        parts[1].conv_out.bias.mul_(0.1)
    return StableDiffusionPipeline(tokenizer, *parts, scheduler)


@pytest.fixture(scope="module", params=SCHEDULERS)
def pair(request, v15_tokenizer, tmp_path_factory):
    """A pipeline of minisd, and what diffusers reads from the folder it is saved in."""
    tokenizer = Tokenizer.from_pretrained(v15_tokenizer, "tokenizer")
    ours = build(tokenizer, SCHEDULERS[request.param], torch.Generator().manual_seed(0))
    folder = tmp_path_factory.mktemp("pipeline")
    ours.save_pretrained(folder, format="diffusers")
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(
        folder, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        low_cpu_mem_usage=False,
    )  # fmt: skip
    theirs.set_progress_bar_config(disable=True)
    return ours, theirs, folder


def walk(theirs, **settings):
    """Run diffusers' pipeline and return its latents after every step."""
    latents = []

    def keep(pipe, i, t, values):
        latents.append(values["latents"].clone())
        return values

    theirs(**settings, output_type="latent", callback_on_step_end=keep)
    return latents


@pytest.mark.parametrize(
    "settings",
    [
        dict(prompt=PROMPTS, guidance_scale=7.5),
        dict(prompt=PROMPTS, guidance_scale=3.0, negative_prompt=["blurry", "night"]),
        dict(prompt=PROMPTS[0], guidance_scale=1.0),
        dict(prompt=PROMPTS[1], guidance_scale=5.0, num_images_per_prompt=3, height=48, width=32),
    ],
    ids=["guided", "negative", "unguided", "several"],
)
def test_every_step_is_that_of_diffusers(pair, settings):
    ours, theirs, _ = pair
    settings = settings | {"num_inference_steps": 6}
    expected = walk(theirs, **settings, generator=torch.Generator().manual_seed(3))
    states = list(ours.denoise(**settings, generator=torch.Generator().manual_seed(3)))
    assert len(states) == len(expected) >= 6
    for state, latents in zip(states, expected, strict=True):
        assert (state.x - latents).abs().max() <= TOLERANCE


def test_the_pictures_are_equal(pair):
    ours, theirs, _ = pair
    settings = dict(prompt=PROMPTS, num_inference_steps=4)
    a = ours(**settings, generator=torch.Generator().manual_seed(1), output_type="np").images
    b = theirs(**settings, generator=torch.Generator().manual_seed(1), output_type="np").images
    assert a.shape == b.shape == (2, 32, 32, 3) and a.std() > 0.05
    assert abs(a - b).max() <= TOLERANCE


@pytest.mark.parametrize("strength", [0.3, 0.8, 1.0])
def test_image_to_image_is_that_of_diffusers(pair, strength, monkeypatch):
    ours, theirs, _ = pair
    scheduler = ours.scheduler  # diffusers' PNDM is one step behind here
    matching = scheduler.from_config(scheduler.config | {"match_diffusers": True})
    monkeypatch.setattr(ours, "scheduler", matching)
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    settings = dict(prompt=PROMPTS[0], image=image, strength=strength, num_inference_steps=10)
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    a = ours(**settings, generator=generators[0], output_type="np").images
    img2img = diffusers.StableDiffusionImg2ImgPipeline(
        **theirs.components, requires_safety_checker=False
    )
    img2img.set_progress_bar_config(disable=True)
    b = img2img(**settings, generator=generators[1], output_type="np").images
    assert a.std() > 0.05 and abs(a - b).max() <= TOLERANCE


@pytest.mark.parametrize(
    ("pair", "files"),
    [("ddim", "as transformers 5 writes them"), ("pndm", "as v1.5 has them")],
    indirect=["pair"],
)
def test_diffusers_folder_opens_in_minisd(pair, files, v15_tokenizer, tmp_path):
    ours, theirs, _ = pair
    theirs.save_pretrained(tmp_path)
    assert not (tmp_path / "tokenizer" / "vocab.json").exists()
    if files == "as v1.5 has them":
        shutil.rmtree(tmp_path / "tokenizer")
        shutil.copytree(v15_tokenizer / "tokenizer", tmp_path / "tokenizer")
    again = StableDiffusionPipeline.from_pretrained(tmp_path)
    assert again.tokenizer.vocab == ours.tokenizer.vocab
    assert again.tokenizer.ranks == ours.tokenizer.ranks
    assert again.tokenizer.config == ours.tokenizer.config
    settings = dict(prompt=PROMPTS, num_inference_steps=3, output_type="pt")
    a = again(**settings, generator=torch.Generator().manual_seed(1)).images
    b = ours(**settings, generator=torch.Generator().manual_seed(1)).images
    assert torch.equal(a, b)


def test_the_tokenizer_that_diffusers_reads_is_ours(pair):
    ours, theirs, _ = pair
    prompts = [*PROMPTS, "", "Ünïcode & 12 tokens, it's <|endoftext|> here", "word " * 100]
    settings = dict(padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    assert torch.equal(theirs.tokenizer(prompts, **settings).input_ids, ours.tokenizer(prompts))


@pytest.mark.parametrize(
    ("pair", "variant"), [("ddim", "fp16"), ("pndm", "bf16")], indirect=["pair"]
)
def test_diffusers_half_precision_folder_opens_in_minisd(pair, variant, tmp_path):
    ours, theirs, _ = pair
    theirs.save_pretrained(tmp_path, variant=variant)  # named so, and in float32 all the same
    again = StableDiffusionPipeline.from_pretrained(
        tmp_path, variant=variant, torch_dtype=torch.bfloat16
    )
    assert again.dtype == torch.bfloat16
    for part in ("unet", "vae", "text_encoder"):
        wanted = getattr(ours, part).state_dict()
        for key, tensor in getattr(again, part).state_dict().items():
            assert torch.equal(tensor, wanted[key].bfloat16())
    with pytest.raises(ValueError, match=rf"there is .*{variant}\.safetensors: see `variant`"):
        StableDiffusionPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize("pair", ["pndm"], indirect=True)
def test_a_safety_checker_is_not_loaded_and_that_is_said(pair, tmp_path):
    _, _, folder = pair
    shutil.copytree(folder, tmp_path / "checked")
    index = tmp_path / "checked" / "model_index.json"
    text = index.read_text()
    checker = '"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],\n "unet"'
    index.write_text(text.replace('"unet"', checker, 1))
    with pytest.warns(UserWarning, match="safety_checker .* is not loaded"):
        StableDiffusionPipeline.from_pretrained(tmp_path / "checked")


@pytest.mark.parametrize("pair", ["ddim"], indirect=True)
def test_transformers_reads_the_text_encoder(pair):
    ours, _, folder = pair
    theirs = transformers.CLIPTextModel.from_pretrained(folder / "text_encoder").eval()
    ids = ours.tokenizer(PROMPTS)
    with torch.no_grad():
        difference = ours.text_encoder(ids) - theirs(ids).last_hidden_state
    assert difference.abs().max() <= TOLERANCE


@pytest.mark.parametrize(
    "fault", ["padding", "empty prompt", "guidance", "scaling", "steps_offset"]
)
def test_a_planted_fault_is_found(pair, fault, monkeypatch):
    ours, theirs, _ = pair
    settings = dict(prompt=PROMPTS, num_inference_steps=3)
    changed = {"empty prompt": {"negative_prompt": "a"}, "guidance": {"guidance_scale": 7.4}}
    if fault == "padding":
        monkeypatch.setattr(ours.tokenizer, "pad_token_id", 0)
    if fault == "scaling":
        monkeypatch.setattr(ours.vae, "config", VAEConfig(32, channels=(8, 8, 16), patch_size=1))
    if fault == "steps_offset":
        scheduler = type(ours.scheduler).from_config(ours.scheduler.config | {"steps_offset": 0})
        monkeypatch.setattr(ours, "scheduler", scheduler)
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    settings_ours = settings | changed.get(fault, {})
    a = ours(**settings_ours, generator=generators[0], output_type="np").images
    b = theirs(**settings, generator=generators[1], output_type="np").images
    assert abs(a - b).max() > 10 * TOLERANCE

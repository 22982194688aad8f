import json
import os
import pickle
import re
import struct
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from helpers import randomise
from safetensors.torch import load_file, save_file

from minisd import (
    AutoencoderKL,
    CLIPTextConfig,
    CLIPTextModel,
    UNet,
    UNetConfig,
    VAEConfig,
)
from minisd.metrics import Judge, JudgeConfig
from minisd.pretrained import (
    CHECKPOINTS,
    SD15,
    TERMS,
    bundled,
    locate,
    preferring,
    read_tensors,
)

CONFIG = UNetConfig(
    sample_size=8, channels=(8, 16), attention=(False, True), num_heads=2, norm_num_groups=4
)
WORDS = replace(CONFIG, context_dim=6)
JUDGE = Judge(JudgeConfig(3, (8,), 4))


@pytest.fixture
def saved(tmp_path):
    folder = tmp_path / "unet"
    randomise(UNet(CONFIG)).save_pretrained(folder)
    return folder


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("format", ["minisd", "diffusers"])
@pytest.mark.parametrize("config", [CONFIG, WORDS], ids=["plain", "words"])
def test_a_saved_model_comes_back_bit_for_bit(config, format, tmp_path):
    model = randomise(UNet(config))
    model.save_pretrained(tmp_path, format=format)
    again = UNet.from_pretrained(tmp_path)
    assert again.config == model.config and not again.training
    for (name, ours), (other, theirs) in zip(
        model.state_dict().items(), again.state_dict().items(), strict=True
    ):
        assert name == other and torch.equal(ours, theirs) and theirs.dtype == torch.float32


def test_a_judge_comes_back_with_its_questions(tmp_path):
    judge = Judge(JudgeConfig(3, (8,), 4, (("colour", 6), ("place", 3))))
    judge.save_pretrained(tmp_path)
    again = Judge.from_pretrained(tmp_path)
    assert again.config == judge.config
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(again(images)["place"], judge(images)["place"])


def test_half_precision_on_disk_and_in_memory(saved, tmp_path):
    half = tmp_path / "half"
    UNet.from_pretrained(saved).save_pretrained(half, dtype=torch.float16)
    stored = load_file(half / "model.safetensors")
    assert {t.dtype for t in stored.values()} == {torch.float16}
    model = UNet.from_pretrained(half)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(model.conv_in.weight, stored["conv_in.weight"].float())
    small = UNet.from_pretrained(half, torch_dtype=torch.bfloat16)
    assert {p.dtype for p in small.parameters()} == {torch.bfloat16}
    assert UNet.from_pretrained(saved).conv_in.weight.dtype == torch.float32


def test_a_variant_of_a_diffusers_folder_is_picked(tmp_path):
    model = randomise(UNet(WORDS))
    model.save_pretrained(tmp_path, format="diffusers")
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    tensors = {key: t + 1 for key, t in load_file(file).items()}
    save_file(tensors, tmp_path / "diffusion_pytorch_model.fp16.safetensors")
    plain = UNet.from_pretrained(tmp_path).conv_in.weight
    variant = UNet.from_pretrained(tmp_path, variant="fp16").conv_in.weight
    assert torch.allclose(variant, plain + 1)
    with pytest.raises(ValueError, match="bf16.*does not exist"):
        UNet.from_pretrained(tmp_path, variant="bf16")


def test_weights_are_mapped_not_copied_unless_they_are_converted(saved):
    path = saved / "model.safetensors"
    same, half = read_tensors(path, torch.float32), read_tensors(path, torch.float16)
    places = [tensor.data_ptr() for tensor in same.values()]
    ends = [tensor.data_ptr() + tensor.nbytes for tensor in same.values()]
    # side by side, as in the file: these are places in it
    assert max(ends) - min(places) == sum(tensor.nbytes for tensor in same.values())
    for key, tensor in half.items():
        assert torch.equal(tensor, same[key].half())
        assert tensor.untyped_storage().nbytes() == 2 * tensor.numel()


def test_loading_does_not_wake_the_compiler(tmp_path):
    """Filling an embedding on the meta device would import it, for more than a second."""
    CLIPTextModel(CLIPTextConfig(10, 4, 8, 1, 1, 9)).save_pretrained(tmp_path)
    code = (
        "import sys; from minisd import CLIPTextModel; "
        f"CLIPTextModel.from_pretrained({str(tmp_path)!r}); "
        "print('torch._inductor' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


def test_importing_minisd_is_light():
    """What only training and the command line need is imported there."""
    code = "import sys, minisd; print([m for m in ('accelerate', 'typer') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_a_loaded_model_can_be_trained(saved):
    model = UNet.from_pretrained(saved)
    model(torch.randn(1, 1, 8, 8), 3).sum().backward()
    assert model.conv_in.weight.grad.abs().sum() > 0


def test_a_subfolder(saved):
    assert UNet.from_pretrained(saved.parent, subfolder="unet").config == CONFIG
    with pytest.raises(ValueError, match="no subfolder 'vae'"):
        UNet.from_pretrained(saved.parent, subfolder="vae")


# What is damaged or does not fit is refused, by name.


@pytest.mark.parametrize("kept", [0, 4, 8, 100, 0.5, -1])
def test_truncated_weights_raise(saved, kept):
    path = saved / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept) if kept == 0.5 else kept])
    with pytest.raises(ValueError, match=r"model\.safetensors is not a complete safetensors file"):
        UNet.from_pretrained(saved)


def test_a_pickle_is_never_opened(saved):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(saved / "exploded"),)

    (saved / "model.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        UNet.from_pretrained(saved)
    torch.save({"conv_in.weight": Bomb()}, saved / "model.safetensors")
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        UNet.from_pretrained(saved)
    assert not (saved / "exploded").exists()


def test_a_header_that_lies_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        read_tensors(path)


@pytest.mark.parametrize("suffix", [".bin", ".ckpt", ".pt"])
def test_a_pickle_in_place_of_the_weights_is_named_and_stays_closed(saved, suffix):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(saved / "exploded"),)

    (saved / "model.safetensors").unlink()
    pickled = saved / f"pytorch_model{suffix}"
    torch.save({"conv_in.weight": Bomb()}, pickled)
    with pytest.raises(ValueError, match=rf"does not exist; pytorch_model\{suffix} is a pickle"):
        UNet.from_pretrained(saved)
    with pytest.raises(ValueError, match="single file and a pickle can run code"):
        UNet.from_pretrained(pickled)
    with pytest.raises(ValueError, match=r"config\.json is a single file: give a folder"):
        UNet.from_pretrained(saved / "config.json")
    assert not (saved / "exploded").exists()


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_missing_files_are_named(saved, file):
    (saved / file).unlink()
    with pytest.raises(ValueError, match=f"{file} does not exist"):
        UNet.from_pretrained(saved)


def test_unknown_fields_are_named(saved):
    change_config(saved, num_haeds=2)
    with pytest.raises(ValueError, match="unknown field 'num_haeds'; UNetConfig has .*num_heads"):
        UNet.from_pretrained(saved)


@pytest.mark.parametrize(
    "changes",
    [{"channels": 8}, {"channels": "ab"}, {"num_heads": "two"}, {"sample_size": None}],
    ids=str,
)
def test_fields_of_the_wrong_type_raise(saved, changes):
    change_config(saved, **changes)
    with pytest.raises(ValueError):
        UNet.from_pretrained(saved)


@pytest.mark.parametrize("content", ["[1, 2]", "{", "", "null"])
def test_a_config_that_is_no_object_raises(saved, content):
    (saved / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json"):
        UNet.from_pretrained(saved)


def test_weights_of_another_size_are_refused(saved):
    change_config(saved, channels=[16, 16])
    with pytest.raises(ValueError, match=r"does not fit.*is \(8,.*not \(16,"):
        UNet.from_pretrained(saved)


@pytest.mark.parametrize("change", ["missing conv_in.bias", "unexpected conv_in.extra"])
def test_missing_and_foreign_tensors_are_named(saved, change):
    path = saved / "model.safetensors"
    tensors = load_file(path)
    if change.startswith("missing"):
        del tensors["conv_in.bias"]
    else:
        tensors["conv_in.extra"] = torch.zeros(3)
    save_file(tensors, path)
    with pytest.raises(ValueError, match=change):
        UNet.from_pretrained(saved)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("block_out_channels", None, r"config\.json has no 'block_out_channels'"),
        ("act_fn", "gelu", r"config\.json: act_fn='gelu' is not supported"),
    ],
)
def test_a_foreign_config_that_is_not_ours(key, value, message, tmp_path):
    UNet(WORDS).save_pretrained(tmp_path, format="diffusers")
    raw = json.loads((tmp_path / "config.json").read_text())
    raw = raw | {key: value} if value else {name: raw[name] for name in raw if name != key}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=message):
        UNet.from_pretrained(tmp_path)


@pytest.mark.parametrize("change", ["missing", "unexpected", "of another shape"])
def test_what_is_wrong_in_a_foreign_file_is_told_in_its_own_words(change, tmp_path):
    UNet(WORDS).save_pretrained(tmp_path, format="diffusers")
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    tensors, key = load_file(path), "down_blocks.0.resnets.0.conv1.weight"
    if change == "unexpected":
        tensors["down.0.resnet.conv_1.weight"], told = torch.ones(3), f"{change} down.0.resnet"
    elif change == "missing":
        del tensors[key]
        told = f"missing {key}"
    else:
        tensors[key], told = torch.zeros(8, 3), rf"{key} is \(8, 3\), not \(8, 8, 3, 3\)"
    save_file(tensors, path)
    with pytest.raises(ValueError, match=f"{path} does not fit the model: {told}"):
        UNet.from_pretrained(tmp_path)


def test_a_folder_of_another_class_is_refused(saved, tmp_path):
    with pytest.raises(ValueError, match="JudgeConfig"):
        Judge.from_pretrained(saved)
    UNet(CONFIG).save_pretrained(tmp_path / "theirs", format="diffusers")
    with pytest.raises(ValueError, match="holds a UNet2DModel, not a Judge"):
        Judge.from_pretrained(tmp_path / "theirs")
    change_config(tmp_path / "theirs", _class_name="AutoencoderKL")
    with pytest.raises(ValueError, match="holds a AutoencoderKL, not a UNet"):
        UNet.from_pretrained(tmp_path / "theirs")


def test_unknown_formats_raise_before_anything_is_written(tmp_path):
    folder = tmp_path / "new"
    with pytest.raises(ValueError, match="'onnx'"):
        UNet(CONFIG).save_pretrained(folder, format="onnx")
    with pytest.raises(ValueError, match="no counterpart of Judge"):
        Judge(JudgeConfig()).save_pretrained(folder, format="diffusers")
    uneven = replace(CONFIG, attention=(True, True))
    with pytest.raises(ValueError, match="one width"):
        UNet(uneven).save_pretrained(folder, format="diffusers")
    assert not folder.exists()


def test_saving_below_a_file_raises(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot write"):
        UNet(CONFIG).save_pretrained(tmp_path / "file" / "model")


def test_saving_over_an_old_model_leaves_no_other_files(saved):
    UNet(CONFIG).save_pretrained(saved)
    assert sorted(os.listdir(saved)) == ["config.json", "model.safetensors"]


# Where a name leads.


def test_bundled_names_are_found():
    for name in bundled():
        assert locate(name) == CHECKPOINTS / name


@pytest.mark.parametrize("name", ["no-such-model", "a/b/c", "./missing", "/missing/model"])
def test_unknown_models_raise_and_list_the_bundled(name):
    with pytest.raises(ValueError, match="unknown model") as caught:
        locate(name)
    assert all(known in str(caught.value) for known in bundled())


def test_a_hub_id_downloads_only_what_is_needed(saved, monkeypatch):
    asked = {}

    def snapshot_download(name, allow_patterns):
        asked[name] = allow_patterns
        return str(saved.parent)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert UNet.from_pretrained("someone/model", subfolder="unet").config == CONFIG
    assert asked == {
        "someone/model": [
            "unet/config.json",
            "unet/model.safetensors",
            "unet/model.safetensors.index.json",
            "unet/diffusion_pytorch_model.safetensors",
            "unet/diffusion_pytorch_model.safetensors.index.json",
        ]
    }


def test_a_variant_downloads_no_other_weights(saved, monkeypatch):
    asked = []

    def snapshot_download(name, allow_patterns):
        asked.extend(allow_patterns)
        return str(saved.parent)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(ValueError, match=r"model\.fp16\.safetensors does not exist"):
        UNet.from_pretrained("someone/model", subfolder="unet", variant="fp16")
    assert asked == [
        "unet/config.json",
        "unet/model.fp16.safetensors",
        "unet/model.safetensors.index.fp16.json",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.safetensors.index.fp16.json",
    ]
    with pytest.raises(ValueError, match="has no subfolder 'vae'"):
        UNet.from_pretrained("someone/model", subfolder="vae")


@pytest.fixture
def no_network(monkeypatch):
    def snapshot_download(name, allow_patterns):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)


def test_no_network_for_a_hub_id_raises(no_network, monkeypatch, tmp_path):
    monkeypatch.setenv("MINISD_DATA", str(tmp_path))
    place = re.escape(str(tmp_path / "someone" / "model"))
    message = (
        f"cannot download someone/model from the hub: no route to host\\. Without .* {place}, or"
    )
    with pytest.raises(ValueError, match=message):
        locate("someone/model", "", ("config.json",))


def test_without_stable_diffusion_its_size_and_licence_are_said(no_network, monkeypatch, tmp_path):
    monkeypatch.setenv("MINISD_DATA", str(tmp_path))
    with pytest.raises(ValueError, match="4.3 GB") as caught:
        UNet.from_pretrained(SD15, "unet", variant="fp16")
    for said in (SD15, "2.1 GB", "OpenRAIL-M", "https://", str(tmp_path / SD15), "its path"):
        assert said in str(caught.value)
    with pytest.raises(ValueError, match=f"is gone; its copy is {SD15}"):
        locate("runwayml/stable-diffusion-v1-5", "", ("model_index.json",))


def test_the_sizes_that_are_said_are_those_of_the_weights():
    with torch.device("meta"):
        parts = UNet(UNetConfig.SD15), AutoencoderKL(VAEConfig.SD15)
        parts += (CLIPTextModel(CLIPTextConfig.SD15),)
    numbers = sum(p.numel() for part in parts for p in part.parameters())
    assert f"{4 * numbers / 1e9:.1f} GB, or {2 * numbers / 1e9:.1f} GB with" in TERMS[SD15]


def test_a_copy_of_a_hub_folder_is_found_without_the_hub(no_network, monkeypatch, tmp_path):
    randomise(UNet(CONFIG)).save_pretrained(tmp_path / "someone" / "model" / "unet")
    monkeypatch.setenv("MINISD_DATA", str(tmp_path))
    assert UNet.from_pretrained("someone/model", "unet").config == CONFIG


def test_a_preferred_folder_is_searched_first(tmp_path):
    JUDGE.save_pretrained(tmp_path / "digits-judge")
    with preferring(tmp_path):
        assert locate("digits-judge") == tmp_path / "digits-judge"
        assert locate("digits-ddpm") == CHECKPOINTS / "digits-ddpm"
    assert locate("digits-judge") == CHECKPOINTS / "digits-judge"
    with pytest.raises(RuntimeError), preferring(tmp_path):
        raise RuntimeError
    assert locate("digits-judge") == CHECKPOINTS / "digits-judge"

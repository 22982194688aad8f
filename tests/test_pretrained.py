import json
import os
import pickle
import re
import struct
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
import torch
from helpers import randomise
from safetensors.torch import load_file, save_file

from minisd import (
    CLIP,
    AutoencoderKL,
    CLIPConfig,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    UNet,
    UNetConfig,
    VAEConfig,
)
from minisd.classifier import Classifier, ClassifierConfig
from minisd.pretrained import (
    CHECKPOINTS,
    SD15,
    TERMS,
    bundled,
    copies,
    download_folder,
    locate,
    locate_companion,
    preferring,
)
from minisd.tensors import MAX_HEADER_BYTES, read_tensors

CONFIG = UNetConfig(
    sample_size=8, channels=(8, 16), attention=(False, True), num_heads=2, norm_num_groups=4
)
WORDS = replace(CONFIG, context_dim=6)
JUDGE = Classifier(ClassifierConfig(3, (8,), 4))


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
    judge = Classifier(ClassifierConfig(3, (8,), 4, (("colour", 6), ("place", 3))))
    judge.save_pretrained(tmp_path)
    again = Classifier.from_pretrained(tmp_path)
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


def test_importing_and_loading_are_light(tmp_path):
    """What only training and the command line need is imported there.

    And filling an embedding on the meta device would import the compiler, for more than a second.
    """
    CLIPTextModel(CLIPTextConfig(10, 4, 8, 1, 1, 9)).save_pretrained(tmp_path)
    code = (
        "import sys, minisd\n"
        "print([m for m in ('accelerate', 'typer', 'torchvision') if m in sys.modules])\n"
        f"minisd.CLIPTextModel.from_pretrained({str(tmp_path)!r})\n"
        "print('torch._inductor' in sys.modules)"
    )
    printed = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert printed.split() == ["[]", "False"]


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


def test_a_header_of_absurd_length_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    with open(path, "wb") as file:  # all of it is there: it would be read, and parsed
        file.write(struct.pack("<Q", MAX_HEADER_BYTES + 1))
        file.truncate(MAX_HEADER_BYTES + 9)

    def load_file(path):
        raise AssertionError("it was opened")

    monkeypatch.setattr("minisd.tensors.load_file", load_file)
    with pytest.raises(ValueError, match="its header would have 16,777,217 bytes"):
        read_tensors(path)


@pytest.mark.parametrize("dtype", [None, torch.float16])
@pytest.mark.parametrize("header", [b"[]", b"{", b'{"a": 1}', b"\xff\xfe", b"[" * 9999])
def test_a_header_that_is_something_else_is_refused(tmp_path, header, dtype):
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        read_tensors(path, dtype)
    path.unlink()
    path.mkdir()
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        read_tensors(path, dtype)


def test_tensors_of_every_shape_and_type_are_converted(tmp_path):
    tensors = {
        "none": torch.zeros(0, 3), "one": torch.tensor(3.5), "half": torch.randn(5).half(),
        "whole": torch.arange(7), "double": torch.randn(2, 3, 4).double(), "yes": torch.ones(3) > 0,
        "brain": torch.randn(9, 1).bfloat16(),
    }  # fmt: skip
    save_file(tensors, tmp_path / "a.safetensors")
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        read = read_tensors(tmp_path / "a.safetensors", dtype)
        assert read.keys() == tensors.keys()
        assert all(torch.equal(read[key], t.to(dtype)) for key, t in tensors.items())


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
    with pytest.raises(ValueError, match="ClassifierConfig"):
        Classifier.from_pretrained(saved)
    UNet(CONFIG).save_pretrained(tmp_path / "theirs", format="diffusers")
    with pytest.raises(ValueError, match="holds a UNet2DModel, not a Classifier"):
        Classifier.from_pretrained(tmp_path / "theirs")
    change_config(tmp_path / "theirs", _class_name="AutoencoderKL")
    with pytest.raises(ValueError, match="holds a AutoencoderKL, not a UNet"):
        UNet.from_pretrained(tmp_path / "theirs")


def test_unknown_formats_raise_before_anything_is_written(tmp_path):
    folder = tmp_path / "new"
    with pytest.raises(ValueError, match="'onnx'"):
        UNet(CONFIG).save_pretrained(folder, format="onnx")
    with pytest.raises(ValueError, match="no counterpart of Classifier"):
        Classifier(ClassifierConfig()).save_pretrained(folder, format="diffusers")
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
    JUDGE.save_pretrained(tmp_path / "inner" / "digits-judge")
    (tmp_path / "digits-ddpm").mkdir()  # holds no model
    with preferring(tmp_path):
        assert locate("digits-judge") == tmp_path / "digits-judge"
        assert locate("digits-ddpm") == CHECKPOINTS / "digits-ddpm"
        with preferring(tmp_path / "inner"):
            assert locate("digits-judge") == tmp_path / "inner" / "digits-judge"
        assert locate("digits-judge") == tmp_path / "digits-judge"
    assert locate("digits-judge") == CHECKPOINTS / "digits-judge"
    with pytest.raises(RuntimeError), preferring(tmp_path):
        raise RuntimeError
    assert locate("digits-judge") == CHECKPOINTS / "digits-judge"


def test_what_one_thread_prefers_does_not_concern_another(tmp_path):
    for name in "ab":
        JUDGE.save_pretrained(tmp_path / name / "digits-judge")
    found, barrier = {}, threading.Barrier(2)

    def look(name):
        with preferring(tmp_path / name):
            barrier.wait(timeout=30)
            found[name] = locate("digits-judge")
            barrier.wait(timeout=30)

    with preferring(tmp_path / "a"):
        threads = [threading.Thread(target=look, args=(name,)) for name in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == {name: tmp_path / name / "digits-judge" for name in "ab"}


@pytest.mark.parametrize("content", ["nothing", "pictures", "a model"])
def test_a_folder_without_a_model_hides_no_bundled_checkpoint(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits-ddpm" / "unet").mkdir(parents=True)
    (tmp_path / "own").mkdir()
    expected = CHECKPOINTS / "digits-ddpm"
    if content == "pictures":
        (tmp_path / "digits-ddpm" / "a.png").touch()
    elif content == "a model":
        UNet(CONFIG).save_pretrained(tmp_path / "digits-ddpm")
        expected = tmp_path / "digits-ddpm"
    assert locate("digits-ddpm").resolve() == expected.resolve()
    assert locate("./digits-ddpm").resolve() == tmp_path / "digits-ddpm"  # a path is a path
    with pytest.raises(ValueError, match="own/config.json does not exist"):
        UNet.from_pretrained("own")


def test_without_a_home_folder_a_bundled_checkpoint_loads(monkeypatch, tmp_path):
    """As in a container whose user has no entry, with minisd installed from its wheel."""
    (tmp_path / "checkpoints").symlink_to(CHECKPOINTS)
    monkeypatch.setattr("minisd.pretrained.CHECKPOINTS", tmp_path / "checkpoints")

    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("pathlib.Path.home", home)
    monkeypatch.setattr(
        "pathlib.Path.expanduser", lambda path: home() if "~" in str(path) else path
    )
    monkeypatch.delenv("MINISD_DATA", raising=False)
    assert UNet.from_pretrained("digits-ddpm").config == UNetConfig.MNIST
    assert download_folder().name == "minisd" and copies() == [download_folder()]
    with pytest.raises(ValueError, match="unknown model 'nothing'"):
        locate("nothing")
    with pytest.raises(ValueError, match="~/x: there is no such home folder"):
        locate("~/x")


def test_the_home_folder_is_expanded(saved, monkeypatch):
    monkeypatch.setenv("HOME", str(saved.parent))
    assert locate("~/unet") == saved
    UNet.from_pretrained("~/unet").save_pretrained("~/again")
    assert (saved.parent / "again" / "config.json").is_file()
    monkeypatch.setenv("MINISD_DATA", "~/data")
    assert copies()[0] == saved.parent / "data"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "~no-such-user-here/x",
        "x" * 5000,
        "a/" + "x" * 5000,
        "a\0b",
        "../digits-ddpm",
        "..a/b/..",
    ]
    + ["digits-ddpm/../../checkpoints/digits-ddpm", "owner/..", "a b/c", "a/b\n"],
)
def test_names_that_cannot_be_are_refused_in_words(name, tmp_path, monkeypatch):
    def asked(*arguments, **settings):
        raise ConnectionError(f"the hub was asked for {arguments}")

    monkeypatch.setattr("huggingface_hub.snapshot_download", asked)
    monkeypatch.setenv("MINISD_DATA", str(tmp_path / "data" / "deep"))
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path / "data")
    with pytest.raises(ValueError):
        locate(name)


def test_a_subfolder_lies_in_the_folder(saved):
    JUDGE.save_pretrained(saved.parent / "other")
    (saved / "link").symlink_to(saved.parent / "other")
    for subfolder in ("../other", str(saved.parent / "other"), "link", "..", "/"):
        with pytest.raises(ValueError, match="leads out of"):
            Classifier.from_pretrained(saved, subfolder)


# What strangers may choose: nothing.


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The hub, which has the folder that is returned under every id; what is asked is noted."""
    folder = tmp_path / "snapshot"
    folder.mkdir()
    asked = []

    def snapshot_download(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return folder, asked


def test_without_named_files_nothing_is_downloaded(hub):
    with pytest.raises(ValueError, match="someone/model is not on this machine"):
        locate("someone/model")
    assert hub[1] == []


def test_only_whole_names_are_asked_of_the_hub(hub):
    (hub[0] / "u*").mkdir()
    locate("someone/model", "u*", ("config.json", "[ab]?.json"))
    assert hub[1] == [("someone/model", ["u[*]/config.json", "u[*]/[[]ab][?].json"])]
    with pytest.raises(ValueError, match="leads out of"):
        locate("someone/model", "..", ("config.json",))


@pytest.mark.parametrize(
    "name", ["evil/anything", "../unet", "/etc", "", ".", None, ["a"], "nothing"]
)
def test_a_companion_is_bundled_or_lies_beside(saved, hub, name):
    with pytest.raises(ValueError, match="must be bundled .*digits-ddpm.* or lie beside"):
        locate_companion(name, saved)
    assert hub[1] == []
    for path in (str(saved), f"../{saved.parent.name}/{saved.name}", "./unet"):
        with pytest.raises(ValueError, match="must be bundled"):
            locate_companion(path, saved)
    assert locate_companion("digits-ddpm", saved) == CHECKPOINTS / "digits-ddpm"
    JUDGE.save_pretrained(saved.parent / "digits-ddpm")
    assert locate_companion("digits-ddpm", saved) == saved.parent / "digits-ddpm"


# Weights in shards.


def shard(folder, file, index, minus=0):
    """Cut the weights of a folder into two shards with an index."""
    tensors, where = load_file(folder / file), {}
    (folder / file).unlink()
    keys, stem = sorted(tensors), file.removesuffix(".safetensors")
    for i, part in enumerate((keys[::2], keys[1::2]), start=1):
        name = f"{stem}-{i:05}-of-00002.safetensors"
        save_file({key: tensors[key] - minus for key in part}, folder / name, {"format": "pt"})
        where |= dict.fromkeys(part, name)
    (folder / index).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))
    return where


FOREIGN = "diffusion_pytorch_model"


@pytest.mark.parametrize("format", ["minisd", "diffusers"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_weights_in_shards_are_read(tmp_path, format, dtype):
    model, file = randomise(UNet(WORDS)), "model" if format == "minisd" else FOREIGN
    model.save_pretrained(tmp_path, format=format)
    shard(tmp_path, f"{file}.safetensors", f"{file}.safetensors.index.json")
    again = UNet.from_pretrained(tmp_path, torch_dtype=dtype)
    for ours, theirs in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours.to(dtype), theirs)


def test_a_variant_in_shards_is_read(tmp_path):
    model = randomise(UNet(WORDS))
    model.save_pretrained(tmp_path, format="diffusers")
    (tmp_path / f"{FOREIGN}.fp16.safetensors").write_bytes(
        (tmp_path / f"{FOREIGN}.safetensors").read_bytes()
    )
    index = f"{FOREIGN}.safetensors.index.fp16.json"  # as diffusers names it
    shard(tmp_path, f"{FOREIGN}.fp16.safetensors", index, minus=1)
    again = UNet.from_pretrained(tmp_path, variant="fp16")
    assert torch.equal(again.conv_in.weight, model.conv_in.weight - 1)
    assert torch.equal(UNet.from_pretrained(tmp_path).conv_in.weight, model.conv_in.weight)


def test_the_shards_on_the_hub_are_asked_by_name(hub):
    folder, asked = hub
    UNet(WORDS).save_pretrained(folder / "unet", format="diffusers")
    index = f"{FOREIGN}.safetensors.index.json"
    where = shard(folder / "unet", f"{FOREIGN}.safetensors", index)
    UNet.from_pretrained("someone/model", "unet")
    assert [name for name, _ in asked] == ["someone/model"] * 2
    assert asked[1][1] == [f"unet/{name}" for name in sorted(set(where.values()))]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda where: {k: "../secret.safetensors" for k in where}, "in the same folder"),
        (lambda where: {k: "/secret.safetensors" for k in where}, "in the same folder"),
        (lambda where: {k: "pytorch_model.bin" for k in where}, "in the same folder"),
        (lambda where: {k: 3 for k in where}, "in the same folder"),
        (lambda where: {k: [] for k in where}, "in the same folder"),
        (lambda where: {k: "gone.safetensors" for k in where}, "gone.safetensors does not exist"),
        (lambda where: {}, "must have a weight_map"),
        (lambda where: ["a"], "must have a weight_map"),
        (lambda where: where | {"more": next(iter(where.values()))}, None),
        (lambda where: dict(zip(where, reversed(where.values()), strict=True)), "places elsewhere"),
        (lambda where: dict(list(where.items())[1:]), "places elsewhere"),
    ],
)
def test_an_index_that_lies_is_refused(tmp_path, damage, message):
    randomise(UNet(WORDS)).save_pretrained(tmp_path / "unet", format="diffusers")
    save_file({"a": torch.zeros(1)}, tmp_path / "secret.safetensors")
    index = f"{FOREIGN}.safetensors.index.json"
    where = shard(tmp_path / "unet", f"{FOREIGN}.safetensors", index)
    (tmp_path / "unet" / index).write_text(json.dumps({"weight_map": damage(where)}))
    if message is None:  # a name too many, which no file has: nothing is missing
        UNet.from_pretrained(tmp_path / "unet")
        return
    with pytest.raises(ValueError, match=message):
        UNet.from_pretrained(tmp_path / "unet")


# Configs of strangers: any value may be anything.

ANYTHING = [None, True, 0, -1, 1.5, 10**9, 10**400, float("inf"), "", "ab", [], [[]], {}, {"a": 1}]
ANYTHING += [["ab"], [None, None], [True, True], [0, 0], [10**9, 10**9], [1e9, 1e9]]
MODELS = {
    "UNet": (UNet(WORDS), "minisd"), "UNet2DModel": (UNet(CONFIG), "diffusers"),
    "UNet2DConditionModel": (UNet(WORDS), "diffusers"), "Classifier": (JUDGE, "minisd"),
    "AutoencoderKL": (
        AutoencoderKL(VAEConfig(8, 3, 4, (8, 8), 1, 4, patch_size=1)), "diffusers"
    ),
    "VAE": (AutoencoderKL(VAEConfig(8, 3, 4, (8, 8), 1, 4, patch_size=1)), "minisd"),
    "CLIPText": (CLIPTextModel(CLIPTextConfig(10, 4, 8, 1, 1, 9)), "minisd"),
    "CLIPTextModel": (CLIPTextModel(CLIPTextConfig(10, 4, 8, 1, 1, 9)), "diffusers"),
    "CLIP": (
        CLIP(CLIPConfig(CLIPTextConfig(10, 4, 8, 1, 1, 9), CLIPVisionConfig(8, 4, 3, 8, 1, 1), 4)),
        "minisd",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", MODELS)
def test_whatever_a_config_says_loading_ends_in_a_model_or_in_words(kind, tmp_path):
    """No traceback of another kind, and no hour of building layers."""
    model, format = MODELS[kind]
    model.save_pretrained(tmp_path, format=format)
    path = tmp_path / "config.json"
    raw = json.loads(path.read_text())
    refused = 0
    for name in [*raw, "_class_name", "architectures", "_", ""]:
        for value in ANYTHING:
            path.write_text(json.dumps(raw | {name: value}))
            try:
                type(model).from_pretrained(tmp_path)
            except ValueError as error:
                refused += 1
                assert str(tmp_path) in str(error)
    assert refused > 6 * len(raw)


@pytest.mark.parametrize("question", ["", "a.b", "keys"])
def test_what_torch_cannot_build_is_told_in_words(question, tmp_path):
    JUDGE.save_pretrained(tmp_path)
    change_config(tmp_path, classes=[[question, 3]])
    with pytest.raises(ValueError, match=r"config\.json: there is no such Classifier: "):
        Classifier.from_pretrained(tmp_path)


@pytest.mark.parametrize("key", ["block_out_channels", "down_block_types", "up_block_types"])
@pytest.mark.parametrize("value", [320, None, {}, "abc", []])
def test_what_must_be_a_list_is_named(key, value, tmp_path):
    UNet(WORDS).save_pretrained(tmp_path, format="diffusers")
    change_config(tmp_path, **{key: value})
    with pytest.raises(ValueError, match=re.escape(f"{key} must be a list, got {value!r}")):
        UNet.from_pretrained(tmp_path)


def test_a_size_that_is_missing_is_named(tmp_path):
    """diffusers' UNet2DModel may say null; its sample_size is not always known."""
    UNet(CONFIG).save_pretrained(tmp_path, format="diffusers")
    change_config(tmp_path, sample_size=None)
    with pytest.raises(ValueError, match="sample_size must be a positive integer, got None"):
        UNet.from_pretrained(tmp_path)

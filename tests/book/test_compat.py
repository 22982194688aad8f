import subprocess
import sys

import pytest

REPAIR = (
    "from minisd.book import compat; compat.declare_torchvision_operators(); "
    "print(len(compat._libraries))"
)


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.mark.slow
def test_everything_imports_in_one_process():
    result = python(
        "import minisd\n"
        "from minisd.book.compat import declare_torchvision_operators\n"
        "declare_torchvision_operators()\n"
        "import torchvision, transformers, diffusers\n"
        "from transformers import CLIPTextModel\n"
        "from diffusers import UNet2DConditionModel, StableDiffusionPipeline\n"
        "print('all here')"
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "all here"


@pytest.mark.slow
def test_the_repair_is_made_once():
    result = python(
        "import torch\n"
        "from minisd.book import compat\n"
        "compat.declare_torchvision_operators()\n"
        "import torchvision\n"
        "before = len(compat._libraries)\n"
        "compat.declare_torchvision_operators()\n"
        "assert len(compat._libraries) == before <= 1, compat._libraries\n"
        "assert hasattr(torch.ops.torchvision, 'nms')\n"
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_the_repair_is_needed_where_it_is_made():
    repaired = python(REPAIR)
    assert repaired.returncode == 0, repaired.stderr
    alone = python("import torchvision")
    if alone.returncode == 0:
        assert repaired.stdout.strip() == "0", "a torchvision that works was repaired"
        pytest.skip("this torchvision works by itself")
    assert "torchvision::nms" in alone.stderr
    assert repaired.stdout.strip() == "1"


@pytest.mark.slow
def test_without_torchvision_nothing_is_repaired():
    result = python(
        "import sys; sys.modules['torchvision'] = None\n"
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'torchvision' else find(name, *a)\n"
        + REPAIR
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "0"


@pytest.mark.slow
def test_minisd_trains_and_draws_without_torchvision():
    result = python(
        "import sys; sys.modules['torchvision'] = None\n"
        "import minisd, minisd.cli, minisd.data.digits, minisd.training, accelerate\n"
        "from accelerate import Accelerator; Accelerator(cpu=True)\n"
        "minisd.data.digits.uci_digits('test'); minisd.UNet.from_pretrained('digits-ddpm')\n"
    )
    assert result.returncode == 0, result.stderr

import subprocess
import sys

import pytest


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.mark.slow
def test_everything_imports_in_one_process():
    result = python(
        "import minisd, torchvision, transformers, diffusers\n"
        "from torchvision.datasets import MNIST\n"
        "from transformers import CLIPTextModel\n"
        "from diffusers import UNet2DConditionModel, StableDiffusionPipeline\n"
        "print('all here')"
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "all here"


@pytest.mark.slow
def test_the_repair_is_made_once():
    result = python(
        "import minisd, torch, torchvision\n"
        "from minisd import compat\n"
        "before = len(compat._libraries)\n"
        "compat.declare_torchvision_operators()\n"
        "compat.declare_torchvision_operators()\n"
        "assert len(compat._libraries) == before <= 1, compat._libraries\n"
        "assert hasattr(torch.ops.torchvision, 'nms')\n"
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_the_repair_is_needed_where_it_is_made():
    repaired = python("import minisd; from minisd import compat; print(len(compat._libraries))")
    assert repaired.returncode == 0, repaired.stderr
    alone = python("import torchvision")
    if alone.returncode == 0:
        assert repaired.stdout.strip() == "0", "a torchvision that works was repaired"
        pytest.skip("this torchvision works by itself")
    assert "torchvision::nms" in alone.stderr
    assert repaired.stdout.strip() == "1"


@pytest.mark.slow
def test_without_torchvision_minisd_imports_and_repairs_nothing():
    result = python(
        "import sys; sys.modules['torchvision'] = None\n"
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'torchvision' else find(name, *a)\n"
        "import minisd; from minisd import compat; print(len(compat._libraries))"
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "0"

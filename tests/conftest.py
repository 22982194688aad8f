import os

import pytest
import torch
from hypothesis import settings

from minisd.book.compat import declare_torchvision_operators

declare_torchvision_operators()  # before a test imports diffusers or transformers

settings.register_profile("book", max_examples=20, deadline=None, derandomize=True)
settings.load_profile("book")
os.environ["ACCELERATE_USE_CPU"] = "true"  # bit for bit the same is a promise about CPUs
torch.set_num_threads(1)  # the tensors here are tiny: threads only get in each other's way


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)

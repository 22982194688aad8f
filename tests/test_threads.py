import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from minisd import threads
from minisd.threads import threads_for

NETWORK = nn.Conv2d(1, 8, 3)  # 80 weights


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def inside(x):
    with threads_for(NETWORK, x):
        return torch.get_num_threads()


def test_small_work_runs_on_one_thread_which_is_restored(two_threads, monkeypatch):
    monkeypatch.setattr(threads, "SMALL", 80 * 3 * 16 + 1)
    assert inside(torch.zeros(3, 1, 4, 4)) == 1 and torch.get_num_threads() == 2
    monkeypatch.setattr(threads, "SMALL", 80 * 3 * 16)
    assert inside(torch.zeros(3, 1, 4, 4)) == 2 and torch.get_num_threads() == 2


@pytest.mark.parametrize("shape", [(2, 1, 4, 4), (1, 1, 8, 4), (1, 9, 8, 4)])
def test_work_grows_with_images_and_places_and_not_with_channels(two_threads, monkeypatch, shape):
    monkeypatch.setattr(threads, "SMALL", 80 * 32)
    assert inside(torch.zeros(shape)) == 2
    assert inside(torch.zeros(1, 9, 31, 1)) == 1


def test_threads_are_restored_after_an_error(two_threads):
    with pytest.raises(RuntimeError), threads_for(NETWORK, torch.zeros(1, 1, 1, 1)):
        raise RuntimeError
    assert torch.get_num_threads() == 2


def test_one_thread_stays_one():
    torch.set_num_threads(1)
    assert inside(torch.zeros(1, 1, 4, 4)) == 1 and torch.get_num_threads() == 1


def test_a_function_without_weights_is_small(two_threads):
    with threads_for(torch.sin, torch.zeros(9, 1, 400, 400)):
        assert torch.get_num_threads() == 1


def test_other_devices_keep_their_threads(two_threads):
    assert inside(torch.zeros(1, 1, 4, 4, device="meta")) == 2


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "5"}, "5"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")],
)
def test_how_threads_wait_is_said_before_torch_is_loaded_unless_the_user_did(given, expected):
    code = """
import os, sys
sys.modules["torch"] = None  # as if it could not be loaded
try:
    import minisd
except ImportError:
    print(os.environ.get("GOMP_SPINCOUNT"))
"""
    own = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {name: value for name, value in os.environ.items() if name not in own} | given
    printed = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)
    assert printed.strip() == expected

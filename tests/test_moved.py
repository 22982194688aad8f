import importlib
import sys

import pytest

from minisd.moved import MOVED


@pytest.mark.parametrize("old", MOVED)
def test_an_old_name_is_the_new_module_and_says_so(old):
    with pytest.warns(DeprecationWarning, match=f"{old} is now {MOVED[old]}"):
        module = importlib.import_module(old)
    assert module is importlib.import_module(MOVED[old])
    assert module.__name__ == MOVED[old]
    del sys.modules[old]  # as if nobody had asked


def test_names_that_never_were_are_not_found():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("minisd.nothing")


def test_img2img_has_its_old_name():
    from minisd.editing import img2img, redraw

    assert redraw is img2img

"""Chapter 13: build a config from a file, which may come from a stranger: nothing is believed."""

import types
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

MAX_SIZE = 2**20  # of a width, a vocabulary, a picture: far more than any model has
MAX_LAYERS = 1000  # a layer without weights takes no memory to build, but a millisecond
WORDS = {
    int: "a positive integer",
    float: "a finite number",
    bool: "True or False",
    str: "text",
    types.NoneType: "None",
}


def check_fields(config: Any, *any_integer: str) -> None:
    """Check that each value of a dataclass has the type that its field declares.

    Integers are sizes: 1 to MAX_SIZE, or to MAX_LAYERS for a number of layers. The fields named in
    `any_integer` may also be 0 or negative. True is no number. The lists and objects of JSON become
    tuples and dataclasses. Raises ValueError that names the field.
    """
    for field in fields(config):
        value, kind = _from_json(getattr(config, field.name), field.type), field.type
        least = -MAX_SIZE if field.name in any_integer else 1
        most = MAX_LAYERS if "layers" in field.name else MAX_SIZE
        if not _fits(value, kind, range(least, most + 1)):
            if get_origin(kind) is Literal:
                known = ", ".join(map(str, get_args(kind)))
                raise ValueError(f"unknown {field.name} {value!r:.80}; choose from {known}")
            wanted = _in_words(kind)
            if least < 1:
                wanted = wanted.replace("a positive integer", "an integer")
            if isinstance(value, int) and value > most:
                wanted += f" of at most {most}"
            raise ValueError(f"{field.name} must be {wanted}, got {value!r:.80}")
        object.__setattr__(config, field.name, value)  # configs are frozen


def class_name(raw: dict[str, Any], source: str | Path) -> str | None:
    """Return the class that a config names, or None; raises ValueError if that is not text.

    diffusers names its class, transformers a list of one; minisd's own configs name none.
    """
    listed = raw.get("architectures") or [None]
    name = raw.get("_class_name") or (listed[0] if isinstance(listed, list) else listed)
    if name is not None and not isinstance(name, str):
        raise ValueError(f"{source}: the name of a class must be text, got {name!r:.80}")
    return name


def build_config(config_class: type, values: dict[str, Any], source: str | Path) -> Any:
    """Return `config_class(**values)`; what does not fit raises ValueError that names `source`."""
    known = {field.name for field in fields(config_class)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(
            f"{source}: unknown field {', '.join(map(repr, unknown))}; "
            f"{config_class.__name__} has {', '.join(sorted(known))}"
        )
    try:
        return config_class(**values)
    except (TypeError, ValueError) as error:  # an unknown field deeper down, a size that is no size
        raise ValueError(f"{source}: {error}") from error


def _from_json(value: Any, kind: Any) -> Any:
    """Turn a list into a tuple, and an object into the dataclass `kind`."""
    if isinstance(value, list | tuple):
        return tuple(_from_json(item, None) for item in value)
    if isinstance(value, dict) and isinstance(kind, type) and is_dataclass(kind):
        return kind(**value)
    return value


def _fits(value: Any, kind: Any, sizes: range) -> bool:
    """Whether `value` is of the type `kind`, and each integer in it one of `sizes`."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return value in inner
    if origin is types.UnionType:
        return any(_fits(value, one, sizes) for one in inner)
    if origin is tuple:
        if inner[-1] is Ellipsis and isinstance(value, tuple):  # as many as there are
            inner = inner[:1] * len(value)
        return (
            isinstance(value, tuple)
            and len(value) == len(inner)
            and all(_fits(v, k, sizes) for v, k in zip(value, inner, strict=True))
        )
    if isinstance(value, bool):
        return kind is bool
    if kind is int:
        return isinstance(value, int) and value in sizes
    if kind is float:
        return isinstance(value, int | float) and abs(value) < 1e300  # not NaN, not infinite
    return isinstance(value, kind)


def _in_words(kind: Any) -> str:
    """Describe a type: "a list (each a positive integer)", say."""
    inner = [_in_words(one) for one in get_args(kind) if one is not Ellipsis]
    if get_origin(kind) is types.UnionType:
        return " or ".join(inner)
    if get_origin(kind) is tuple:
        return f"a list (each {' with '.join(inner)})"
    return WORDS.get(kind, getattr(kind, "__name__", str(kind)))

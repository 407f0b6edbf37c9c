"""Python values as tagged JSON, the only form in which they enter or leave the sandbox.

Both sides load this file by its folder, so it imports the standard library alone. Usage:
`decode(json.loads(json.dumps(encode((1, {2.5})))))`.
"""

import math
from typing import Any

PLAIN_INT = 2**63  # larger ones travel in hex: Python refuses to print over 4300 digits


class Other:
    """A value of a type that does not travel; it is equal to nothing but itself."""

    def __init__(self, type_name: str) -> None:
        self.type_name = type_name

    def __repr__(self) -> str:
        return f"<{self.type_name} object>"


def encode(value: Any) -> Any:
    """JSON-able form of `value`; subclasses become their builtin base, RecursionError if cyclic."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        number = int.__int__(value)
        return number if -PLAIN_INT < number < PLAIN_INT else {"int": hex(number)}
    if isinstance(value, float):
        number = float.__float__(value)
        return number if math.isfinite(number) else {"float": repr(number)}
    if isinstance(value, complex):
        return {"complex": [encode(value.real), encode(value.imag)]}
    if isinstance(value, bytes):
        return {"bytes": bytes.hex(value)}
    return _encode_container(value)


def _encode_container(value: Any) -> Any:
    if isinstance(value, list):
        return [encode(item) for item in list.__iter__(value)]
    if isinstance(value, tuple):
        return {"tuple": [encode(item) for item in tuple.__iter__(value)]}
    if isinstance(value, set):
        return {"set": [encode(item) for item in set.__iter__(value)]}
    if isinstance(value, frozenset):
        return {"frozenset": [encode(item) for item in frozenset.__iter__(value)]}
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(item)] for key, item in dict.items(value)]}
    return {"other": type(value).__name__}


def decode(data: Any) -> Any:
    """The builtin value of tagged JSON; ValueError or TypeError for what encode never makes."""
    if isinstance(data, list):
        return [decode(item) for item in data]
    if not isinstance(data, dict):
        return data
    if len(data) != 1:
        raise ValueError(f"a tagged value has one tag, not {len(data)}")
    ((tag, body),) = data.items()
    if tag in ("tuple", "set", "frozenset", "dict", "complex") and isinstance(body, list):
        return _decode_items(tag, [decode(item) for item in body])
    if tag in ("int", "float", "bytes", "other") and isinstance(body, str):
        return _decode_text(tag, body)
    raise ValueError(f"no value has the tag {tag[:20]!r} on a {type(body).__name__}")


def _decode_items(tag: str, items: list[Any]) -> Any:
    if tag == "dict":
        return {key: item for key, item in items}
    if tag == "complex":
        real, imaginary = items
        return complex(float(real), float(imaginary))
    return {"tuple": tuple, "set": set, "frozenset": frozenset}[tag](items)


def _decode_text(tag: str, text: str) -> Any:
    if tag == "int":
        return int(text, 16)
    if tag == "bytes":
        return bytes.fromhex(text)
    if tag == "other":
        return Other(text)
    if text not in ("nan", "inf", "-inf"):
        raise ValueError(f"the tag 'float' is for nan and infinities, not {text[:20]!r}")
    return float(text)

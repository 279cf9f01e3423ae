from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from datamodules.system.arguments import declared, taken


@declared
@dataclass(frozen=True)
class Setting:
    size: int = 1


@declared
class Owner:
    def __init__(
        self,
        path: str,
        setting: Setting | None = None,
        *,
        rates: tuple[float, float] = (0.1, 0.2),
        **more: Any,
    ) -> None:
        self.path, self.setting, self.rates, self.more = path, setting, rates, more


@pytest.mark.parametrize(
    ("given", "kind", "plain"),
    [
        (Path("rows.jsonl"), str, "rows.jsonl"),
        (Path("rows.jsonl"), str | None, "rows.jsonl"),
        (np.int64(3), int, 3),
        (np.float32(0.5), float, 0.5),
        (np.int64(3), float, 3),
        (2, float, 2),
        (np.bool_(True), bool, True),
        (True, bool, True),
        (None, int | None, None),
        ([0.5, np.float64(0.25)], tuple[float, float], (0.5, 0.25)),
        (("q_proj", "v_proj"), str | list[str], ["q_proj", "v_proj"]),
        ({"a": np.int64(1)}, dict[str, int], {"a": 1}),
        ("on", Literal["auto", "on"], "on"),
        (object, Any, object),
        (3, "Unknown | None", 3),  # a type in quotes is not looked up
    ],
)
def test_what_is_of_the_kind_is_taken_as_plain_values(given, kind, plain):
    assert taken("a", given, kind) == plain
    assert type(taken("a", given, kind)) is type(plain)


@pytest.mark.parametrize(
    ("given", "kind", "wanted"),
    [
        (None, str, "None; give a text."),
        ("8", int, "'8'; give a whole number."),
        (8.0, int, "8.0; give a whole number."),
        (True, int, "True; give a whole number."),
        (1, bool, "1; give True or False."),
        ({"q_proj": 1}, list[str], "{'q_proj': 1}; give a list of a text."),
        (b"ab", list[int], "b'ab'; give a list of a whole number."),
        (True, float | None, "True; give a number or None."),
        (0.5, tuple[float, float], "0.5; give a tuple of a number and a number."),
        ([1, 2, 3], tuple[float, float], "[1, 2, 3]; give a tuple of a number and a number."),
        ("ab", list[str], "'ab'; give a list of a text."),
        ("linear", Literal["cosine", "constant", "none"], "'linear'; give cosine, constant or none."),
        (True, Literal["auto", "on"], "True; give auto or on."),
        ([max], dict[str, Callable[[int], int]], "[<built-in function max>]; give a dict, by name, of a function."),
        ({"r": 4}, Setting | None, f"{{'r': 4}}; give an object of {__name__}.Setting or None."),
        ("b" * 99, int, "'" + "b" * 78 + "…; give a whole number."),  # 79 letters of it
    ],
)
def test_what_is_of_another_kind_is_refused_in_a_sentence(given, kind, wanted):
    with pytest.raises(ValueError) as error:
        taken("lora", given, kind)
    assert str(error.value) == f"lora is {wanted}"


def test_constructors_take_what_they_declare():
    owner = Owner(Path("a"), Setting(np.int64(2)), rates=[1, 2], other=Path("b"))
    assert (owner.path, owner.setting, owner.rates) == ("a", Setting(2), (1, 2))
    assert owner.more == {"other": Path("b")}  # of its own class or of nothing known
    assert type(replace(owner.setting, size=np.int64(3)).size) is int
    for call, wanted in (
        (lambda: Owner("a", {"size": 2}), "Owner: setting is {'size': 2}; give an object of"),
        (lambda: Setting("2"), "Setting: size is '2'; give a whole number."),
    ):
        with pytest.raises(ValueError, match=wanted):
            call()
    for call in (lambda: Owner(), lambda: Owner("a", None, (1, 2)), lambda: Setting(3, 4), lambda: Setting(bytes=3)):
        with pytest.raises(TypeError, match=r"__init__\(\)"):  # in Python's own words
            call()

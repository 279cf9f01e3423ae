"""Values and wordings of the shipped corpus: word lists, and a sampler for every kind of parameter.

An open value (a name, a date, a code, a number from a wide range) belongs to training or to evaluation, by a hash of
its text or by its place in the word list, so that an evaluation query never shows a value that training has used.
Closed kinds (enumerations, flags and ranges of fewer than 20 numbers) are shared, there being no other values to take.
"""

import random
import zlib
from collections.abc import Callable
from typing import Any

Value = Any

_BANKS = {
    "start": "Ash Brook Clay Dun East Fair Glen Harrow Iron Kings Lang Mar North Oak Pen Red Stan Thorn West Wind Elm",
    "end": "ford field haven wick ton bury mouth dale port bridge ham well stead gate moor cliff hurst by",
    "first": "Nora Tom Lena Omar Ivy Hugo Mina Paul Zoe Karl Rosa Finn Maya Axel Dina Leo Ruth Sven Tara Juan Alma Ali",
    "last": "Weber Costa Lind Okoye Park Silva Novak Marsh Dahl Rossi Tanaka Byrne Vogel Haas Mensah Petrov Quinn",
    "adjective": "Silent Golden Broken Distant Little Winter Hidden Electric Paper Burning Velvet Lucky Hollow Gentle "
    "Crimson Frozen Wandering Endless Copper Blue Rapid Bright",
    "noun": "River Garden Machine Mirror Forest Station Letter Harbour Planet Bridge Candle Window Voyage Island "
    "Lantern Mountain Summer Engine Castle Shadow Signal Meadow",
    "material": "wooden leather cotton steel glass woollen ceramic plastic bamboo silver linen rubber",
    "thing": "lamp chair backpack jacket kettle desk watch blanket camera bottle wallet helmet mirror tent shelf",
    "field": "solar marine urban ancient digital modern organic rural global medical alpine public nuclear tropical",
    "subject": "farming history energy art trade music biology housing transport chess poetry finance robotics law",
    "country": "Norway Brazil Japan Kenya Canada Italy Peru Egypt India Poland Chile Greece Spain Ghana Nepal Cuba",
    "language": "French German Spanish Arabic Hindi Korean Dutch Turkish Polish Swedish Greek Thai Czech Danish",
    "currency": "USD EUR JPY GBP CHF SEK INR BRL CAD AUD NOK PLN",
    "month": "January February March April May June July August September October November December",
    "colour": "red green blue black white yellow purple orange brown grey pink silver",
    "dish": "lasagna ramen paella curry risotto goulash tacos dumplings pancakes moussaka chowder falafel ravioli stew",
    "ingredient": "rice lentils cheddar spinach salmon almonds tofu butter tomatoes ginger mango walnuts honey oats",
    "plant": "lavender birch tulip maple basil rose fern ivy willow mint jasmine cedar daisy poppy sage",
    "pest": "aphids slugs mites beetles snails moths weevils ants",
    "medicine": "ibuprofen aspirin cetirizine insulin codeine naproxen loratadine melatonin zinc",
    "exercise": "yoga squats rowing pilates boxing running swimming lunges cycling climbing skipping",
    "sport": "tennis squash badminton padel volleyball basketball hockey",
    "league": "premier national junior coastal northern masters city",
    "room": "kitchen bedroom bathroom garage hallway office attic cellar library nursery studio",
    "device": "freezer heater dryer boiler printer fridge oven television router",
    "place": "bakery museum cafe bank florist hostel cinema market garage theatre",
    "genre": "thriller comedy western drama horror romance mystery fantasy crime",
    "job": "welder nurse teacher plumber baker analyst driver painter cook tailor lawyer gardener",
    "syllable": "ka lo mi ter ran vo sel du pi gar ne lu zon fa bri to mel shu ri dan pe kol ja",
}
BANKS = {name: words.split() for name, words in _BANKS.items()}


def _word(rng: random.Random, bank: str) -> str:
    return rng.choice(BANKS[bank])


def _number(rng: random.Random, options: str) -> int:
    low, high = options.split(",")
    return rng.randint(int(low), int(high))


def _decimal(rng: random.Random, options: str) -> float:
    low, high = (float(bound) for bound in options.split(","))
    return round(rng.uniform(low, high), 2 if high <= 2 else 1)


def _town(rng: random.Random) -> str:
    return _word(rng, "start") + _word(rng, "end")


def _title(rng: random.Random) -> str:
    return f"{_word(rng, 'adjective')} {_word(rng, 'noun')}"


def _code(rng: random.Random) -> str:
    letters = "".join(rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(2))
    return f"{letters}-{rng.randint(100, 999)}"


SAMPLERS: dict[str, Callable[[random.Random], Value]] = {
    "city": _town,
    "region": lambda rng: f"{rng.choice(['Upper', 'Lower', 'South', 'Central'])} {_town(rng)}",
    "harbour": lambda rng: f"Port {_town(rng)}",
    "mountain": lambda rng: f"Mount {_town(rng)}",
    "airport": lambda rng: f"{_town(rng)} Airport",
    "street": lambda rng: f"{rng.randint(2, 98)} {_town(rng)} {rng.choice(['Road', 'Street', 'Lane'])}",
    "road": lambda rng: f"{rng.choice('ABM')}{rng.randint(2, 99)}",
    "person": lambda rng: f"{_word(rng, 'first')} {_word(rng, 'last')}",
    "company": lambda rng: f"{_word(rng, 'last')} {rng.choice(['Group', 'Foods', 'Motors', 'Labs'])}",
    "restaurant": lambda rng: f"The {_title(rng)}",
    "shop": lambda rng: f"{_town(rng)} Market",
    "title": _title,
    "project": lambda rng: f"Project {_title(rng)}",
    "topic": lambda rng: f"{_word(rng, 'field')} {_word(rng, 'subject')}",
    "product": lambda rng: f"{_word(rng, 'material')} {_word(rng, 'thing')}",
    "date": lambda rng: f"{rng.randint(1, 28)} {_word(rng, 'month')}",
    "time": lambda rng: f"{rng.randint(10, 22)}:{rng.choice(['00', '15', '30', '45'])}",
    "year": lambda rng: rng.randint(1960, 2029),
    "code": _code,
    "seat": lambda rng: f"{rng.randint(1, 40)}{rng.choice('ABCDEF')}",
    "phone": lambda rng: f"555-{rng.randint(1000, 9999)}",
    "email": lambda rng: f"{_word(rng, 'first').lower()}@{_town(rng).lower()}.org",
    "file": lambda rng: f"{_word(rng, 'noun').lower()}_{_word(rng, 'thing')}.{rng.choice(['txt', 'pdf', 'csv'])}",
    "service": lambda rng: f"{_word(rng, 'noun').lower()}-{_word(rng, 'thing')}",
    "server": lambda rng: f"{_word(rng, 'plant')}-{rng.randint(1, 99)}",
    "branch": lambda rng: f"feature/{_word(rng, 'thing')}-{rng.randint(1, 99)}",
    "version": lambda rng: f"{rng.randint(1, 9)}.{rng.randint(0, 20)}",
    "ip": lambda rng: f"10.{rng.randint(0, 99)}.{rng.randint(0, 99)}.{rng.randint(1, 99)}",
    "pet": lambda rng: _word(rng, "syllable").capitalize() + _word(rng, "syllable"),
}


def _sample(kind: str, options: str, rng: random.Random) -> Value:
    if kind == "enum":
        return rng.choice(options.split(","))
    if kind == "flag":
        return True
    if kind == "int":
        return _number(rng, options)
    if kind == "float":
        return _decimal(rng, options)
    return SAMPLERS[kind](rng)


def _is_closed(kind: str, options: str) -> bool:
    if kind in ("enum", "flag"):
        return True
    bounds = options.split(",")
    return kind == "int" and int(bounds[1]) - int(bounds[0]) < 20


def is_held_out(value: Value) -> bool:
    """Whether a composed value is kept for evaluation: one in five, by a hash of its text."""
    return zlib.crc32(str(value).encode()) % 5 == 0


def sample_value(kind: str, options: str, rng: random.Random, held_out: bool) -> Value:
    """Draw a value of one kind of parameter.

    Args:
        kind: A kind of the catalogue: a word list, a sampler, int, float, enum, flag, list, ilist or dict.
        options: What stands in the catalogue's parentheses: a range, the choices, the item's kind or the fields.
        rng: Source of randomness.
        held_out: Draw open values from the evaluation share instead of the training share.

    Returns:
        A str, int, float, bool, list or dict.
    """
    if kind in ("list", "ilist"):
        item = ("int", options) if kind == "ilist" else (options, "")
        values: list[Value] = []
        size = rng.randint(2, 3)
        while len(values) < size:
            value = sample_value(*item, rng, held_out)
            if value not in values:
                values.append(value)
        return values
    if kind == "dict":
        fields = (field.split(":") for field in options.split(","))
        return {name: sample_value(field_kind, "", rng, held_out) for name, field_kind in fields}
    if kind in BANKS:
        kept = max(3, len(BANKS[kind]) // 4)
        return rng.choice(BANKS[kind][-kept:] if held_out else BANKS[kind][:-kept])
    while True:
        value = _sample(kind, options, rng)
        if _is_closed(kind, options) or is_held_out(value) == held_out:
            return value

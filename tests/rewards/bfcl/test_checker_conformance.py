"""`match_bfcl` against the official checker: every gold row, and seeded perturbations of them."""

import copy
import json
import random
import unicodedata

from rewards import match_bfcl

PERTURBATIONS = 24_000
ODD = [None, True, False, 0, 1, 1.0, -3, 2.5, "", " ", "1", "true", "None", [], [[]], {}, (), (1,), ["a"], {"a": 1}, 1j]
LITERAL_SUFFIX = {"long": "L", "Bigint": "n"}
MARKS = " ,./-_*^'\"()[]{}<>:;+@#\n\t0159eElLfFnaZé\u0301İß"


def settled(value, rng):
    """A copy of an accepted value in which dicts hold one of the accepted values of each key."""
    if isinstance(value, list):
        return [settled(item, rng) for item in value]
    if isinstance(value, dict):
        picks = {key: rng.choice(a) if isinstance(a, list) and a else a for key, a in value.items()}
        return {key: settled(pick, rng) for key, pick in picks.items() if pick != "" or rng.random() < 0.3}
    return value


def java(value, kind, items):
    """A value as a Java literal of its declared type."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list) and kind == "Array":
        return f"new {items}[]{{{', '.join(java(item, items, None) for item in value)}}}"
    if isinstance(value, list):
        inner = [java(item, items, None) for item in value]
        added = "new ArrayList<>() {{ " + " ".join(f"add({item});" for item in inner) + " }}"
        return added if len(inner) % 2 else f"new ArrayList<>(Arrays.asList({', '.join(inner)}))"
    if isinstance(value, dict):
        puts = " ".join(f'put("{key}", {java(item, None, None)});' for key, item in value.items())
        return f"new HashMap<String, Object>() {{{{ {puts} }}}}"
    return f'"{value}"' if isinstance(value, str) and kind is None else f"{value}{LITERAL_SUFFIX.get(kind, '')}"


def javascript(value, kind, items):
    """A value as a JavaScript literal."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(javascript(item, items, None) for item in value)}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {javascript(item, None, None)}" for key, item in value.items()) + "}"
    return f'"{value}"' if isinstance(value, str) and kind != "any" else f"{value}{LITERAL_SUFFIX.get(kind, '')}"


def gold_calls(functions, answers, language, rng):
    """Calls that the ground truth should accept, in the form that the official decoders return."""
    calls = []
    for answer in answers:
        ((name, accepted),) = answer.items()
        declared = next((f for f in functions if f["name"] == name), functions[0])["parameters"]["properties"]
        arguments = {}
        for parameter, alternatives in accepted.items():
            spec = declared.get(parameter, {"type": "any"})
            value = settled(rng.choice(alternatives or [""]), rng)
            if value == "" and len(alternatives) != 1:  # absent
                continue
            if language == "Python":
                arguments[parameter] = tuple(value) if spec["type"] == "tuple" and rng.random() < 0.5 else value
            else:
                written = java if language == "Java" else javascript
                arguments[parameter] = written(value, spec["type"], spec.get("items", {}).get("type"))
        calls.append({name: arguments})
    return calls


def perturbed_text(text, rng):
    """A text changed in case, punctuation, blanks, unicode form, or a character or two."""
    at = rng.randrange(len(text) + 1)
    return rng.choice(
        [
            lambda: text.upper(),
            lambda: text.swapcase(),
            lambda: unicodedata.normalize("NFD", text),
            lambda: text.replace("'", '"'),
            lambda: text.replace(" ", rng.choice("_-,.")),
            lambda: text[:at] + rng.choice(MARKS) + text[at:],
            lambda: text[:at] + text[at + 1 :],
            lambda: text + rng.choice(["\n", " ", "L", "f", "n", "0", ")", "]", "}"]),
            lambda: text.strip("\"'"),
            lambda: f'"{text}"',
        ]
    )()


def perturbed_value(value, others, rng):
    """A value of another type, or of the same type and changed, or one from another place."""
    if rng.random() < 0.25:
        return copy.deepcopy(rng.choice([*ODD, *others]))
    match value:
        case bool():
            return rng.choice([not value, int(value), str(value)])
        case int() | float():
            return rng.choice([value + 1, -value, float(value), int(value), str(value), [value], bool(value)])
        case str():
            return perturbed_text(value, rng) if rng.random() < 0.9 else [value]
        case list() | tuple():
            items = list(value)
            at = rng.randrange(len(items)) if items else 0
            return rng.choice(
                [
                    lambda: tuple(items),
                    lambda: items[::-1],
                    lambda: items[:-1],
                    lambda: items + items[:1],
                    lambda: [items],
                    lambda: [*items[:at], *(perturbed_value(item, others, rng) for item in items[at:])],
                ]
            )()
        case dict():
            items = dict(value)
            key = rng.choice([*items, "extra"])
            if rng.random() < 0.4:
                items.pop(key, None)
                return items
            return items | {key: perturbed_value(items.get(key), others, rng)}
    return rng.choice(ODD)


def perturbed_calls(calls, others, rng):
    """One thing changed: a value, an argument, a name, or the calls as a whole."""
    calls = copy.deepcopy(calls)
    at = rng.randrange(len(calls))
    ((name, arguments),) = calls[at].items()
    what = rng.random()
    if what < 0.6 and arguments:
        parameter = rng.choice(list(arguments))
        arguments[parameter] = perturbed_value(arguments[parameter], others, rng)
    elif what < 0.7 and arguments:
        arguments.pop(rng.choice(list(arguments)))
    elif what < 0.77:
        arguments[rng.choice(["extra", None, name, "unit"])] = copy.deepcopy(rng.choice([*ODD, *others]))
    elif what < 0.87:
        text = str(name)
        renamed = [text.replace(".", "_"), text.upper(), text + " ", "", None, text.split(".")[-1], text[:-1]]
        calls[at] = {rng.choice(renamed): arguments}
    else:
        change = rng.choice(
            [
                lambda: calls[::-1],
                lambda: rng.sample(calls, len(calls)),
                lambda: calls[:-1],
                lambda: calls + calls[:1],
                lambda: [calls[0]] * len(calls),
                lambda: [*calls, {}],
                lambda: [*calls[1:], {name: arguments, "g": {}}],
                lambda: [{name: list(arguments)}],
                lambda: [name],
            ]
        )
        calls = change()
    return calls


def agrees(official, row, calls):
    category, language, functions, answers = row
    theirs = official.is_calls(calls) and official.check(functions, calls, answers, language, category)
    ours = match_bfcl(calls, answers, functions, category, language)
    assert ours.matched == bool(theirs), (category, json.dumps(calls, default=str), answers, ours.reason)
    return ours.matched


def test_every_gold_row_gets_the_official_verdict(official, bfcl_rows):
    rng = random.Random(0)
    right = [agrees(official, row, gold_calls(*row[2:], row[1], rng)) for row in bfcl_rows for _ in range(3)]
    assert len(right) == 3 * 2501
    assert sum(right) > 0.97 * len(right)  # a few rows' ground truth does not accept itself


def test_perturbed_calls_get_the_official_verdict(official, bfcl_rows):
    rng = random.Random(1)
    by_language = {language: [row for row in bfcl_rows if row[1] == language] for _, language, *_ in bfcl_rows}
    others = [value for row in bfcl_rows for call in gold_calls(*row[2:], row[1], rng) for a in call.values()
              for value in a.values()]  # fmt: skip
    right = 0
    for number in range(PERTURBATIONS):
        row = rng.choice(by_language[("Python", "Python", "Java", "JavaScript")[number % 4]])
        calls = gold_calls(*row[2:], row[1], rng)
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            if official.is_calls(calls) and calls:
                calls = perturbed_calls(calls, others, rng)
        right += agrees(official, row, calls)
    assert 0.1 * PERTURBATIONS < right < 0.6 * PERTURBATIONS  # both verdicts are common

"""General text for the tiny base model: it teaches to read a tool list and to copy, not the form of the answers.

A document is a chat in the base model's own template, about a tool list or about values to repeat. It uses the
generator of the shipped corpus with its training values and wordings; half of its tool lists are invented, with names
of made-up words and of any words of the catalogue, so that reading the list pays more than remembering it. Values are
those of the training share, but some are replaced by made-up words or by any word of the word lists. So most words are
met, as a language model has met most, in no place that says what they belong to: no document holds a function that
training never shows, and none holds `<think>` or a python call.
"""

import json
import keyword
import random
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from lightning.pytorch import LightningDataModule

from datamodules.chat.tokenizer import load_tokenizer
from datamodules.loading import ResumableLoader
from datamodules.packing import CALL, PROMPT, Encoded, PackedBatch, collate_packed, micro_batches
from datamodules.system.arguments import declared
from datamodules.toolbox.catalogue import FUNCTIONS, Function, Parameter, sample_arguments
from datamodules.toolbox.functions import CATALOGUE
from datamodules.toolbox.rows import JOINERS, WORDINGS, request_text
from datamodules.toolbox.values import BANKS, sample_value

Message = dict[str, str]
SEEN = [function for function in FUNCTIONS if not function.unseen and function.parameters]
NAMES = {function.name for function in FUNCTIONS}
WORDS = sorted(set(re.findall("[a-z]{2,}", CATALOGUE.lower())) - set(keyword.kwlist))
TEXTS = "city person title date time code topic product file email street colour".split()
KINDS = [*TEXTS, "int", "float", "flag", "list"]
SYSTEM_LINES = (
    "Tools:",
    "# Tools",
    "These tools are offered.",
    "Here is what can be called:",
    "You read requests and take notes of them.",
    "First look for the function that fits, then for where the request gives each argument.",
    "Give each parameter the value that the request names; leave out what is optional and not named.",
    "Several requests may come in one message; take them in order.",
    "Say so where no tool of the list fits.",
)


def _pseudo_word(rng: random.Random) -> str:
    return "".join(rng.choice(BANKS["syllable"]) for _ in range(rng.randint(2, 3)))


def _name_word(rng: random.Random) -> str:
    return rng.choice([_pseudo_word(rng), rng.choice(WORDS)])


def _any_word(rng: random.Random) -> str:
    return rng.choice([_name_word(rng), rng.choice(BANKS[rng.choice(list(BANKS))])])


def invented_function(rng: random.Random) -> Function:
    """A function with one to four parameters, named with made-up words or any words, and none of the catalogue."""
    verb, noun = rng.choice([*"get find set make send check open list".split(), _name_word(rng)]), _name_word(rng)
    while f"{verb}_{noun}" in NAMES or rng.random() < 0.2:
        noun += "_" + _name_word(rng)
    parameters = []
    for name in sorted({_name_word(rng) for _ in range(rng.randint(1, 4))}):
        kind = rng.choice(KINDS)
        options = {"int": "1,999", "float": "1,99", "list": rng.choice(TEXTS[:6])}.get(kind, "")
        phrase = f"with {name}" if kind == "flag" else f"{rng.choice(['with', 'for', 'at', 'by', 'using'])} {name} {{}}"
        parameters.append(Parameter(name, kind, options, rng.choice([None, None, "none"]), phrase))
    action = f"{verb} the {noun.replace('_', ' ')}"
    return Function(f"{verb}_{noun}", action, "invented", tuple(parameters), False)


def _toolset(rng: random.Random) -> list[Function]:
    size = rng.choice([1, 1, 2, 2, 3, 4])
    if rng.random() < 0.5:
        return rng.sample(SEEN, size)
    return [invented_function(rng) for _ in range(size)]


def _system(tools: list[Function], rng: random.Random) -> Message:
    lines = rng.sample(SYSTEM_LINES, rng.randint(1, 5))
    listed = json.dumps([tool.tool() for tool in tools], separators=rng.choice([(",", ":"), (", ", ": ")]))
    return {"role": "system", "content": "\n".join([*lines, listed])}


def _note(function: Function, arguments: dict[str, Any], style: int) -> str:
    pairs = list(arguments.items())
    if style == 0:
        return "\n".join([f"tool: {function.name}", *(f"{name}: {value}" for name, value in pairs)])
    if style == 1:
        return json.dumps({"tool": function.name, **arguments})
    if style == 2:
        said = " ".join(f"The {name} is {value}." for name, value in pairs)
        return f"To {function.action} there is {function.name}. {said}"
    return f"{function.name}: " + (", ".join(f"{name}={value!r}" for name, value in pairs) or "nothing")


def _arguments(function: Function, rng: random.Random) -> dict[str, Any]:
    """Arguments of one call; some of the text is replaced, so that any word can be copied into any place."""
    arguments = sample_arguments(function, rng, held_out=False)
    chosen = {name for name, value in arguments.items() if type(value) is str and rng.random() < 0.3}
    return {name: _any_word(rng) if name in chosen else value for name, value in arguments.items()}


def _turn(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _request(function: Function, arguments: dict[str, Any], rng: random.Random) -> str:
    """One request; a quarter of them with a made-up verb, so that no verb is needed to tell what is asked."""
    if rng.random() < 0.25:
        function = replace(function, action=f"{_name_word(rng)} {function.action.partition(' ')[2]}")
    return request_text(function, arguments, rng)


def _message(requests: list[str], rng: random.Random) -> str:
    """Requests in one message, a quarter of them in made-up words."""
    if rng.random() < 0.25:
        joint, sentence = f" {_pseudo_word(rng)} ", f"{_pseudo_word(rng)} {_pseudo_word(rng)} {{}}."
    else:
        joint, sentence = rng.choice(JOINERS[0]), rng.choice(WORDINGS[0])
    return sentence.format(joint.join(requests))


def note_turn(tools: list[Function], rng: random.Random) -> list[Message]:
    """A request, and a note of which tool serves it and what was found for each parameter."""
    missing = rng.random() < 0.2
    if missing:
        invented = tools[0].domain == "invented"
        wanted = [invented_function(rng) if invented else rng.choice([f for f in SEEN if f not in tools])]
    elif rng.random() < 0.6:
        wanted = [rng.choice(tools)] * rng.choice([1, 1, 2, 3])
    else:
        wanted = rng.sample(tools, min(len(tools), rng.randint(1, 3)))
    asked = [(function, _arguments(function, rng)) for function in wanted]
    style = rng.choice((0, 1, 2, 3, 3, 3, 3))
    notes = ["None of them does this."] if missing else [_note(function, found, style) for function, found in asked]
    if rng.random() < 0.6:
        notes.insert(0, f"Offered: {', '.join(tool.name for tool in tools)}.")
    if rng.random() < 0.6 and wanted[0] in [*tools, *SEEN]:  # a made-up function that is not offered has no known name
        notes.insert(0, f"Wanted: {', '.join(function.name for function in wanted)}.")
    return _turn(_message([_request(function, found, rng) for function, found in asked], rng), "\n".join(notes))


def reading_turn(tools: list[Function], rng: random.Random) -> list[Message]:
    """A question about the tool list."""
    tool, other = rng.choice(tools), rng.choice(SEEN)
    names = ", ".join(p.name for p in tool.parameters)
    required = ", ".join(p.name for p in tool.parameters if p.default is None) or "nothing"
    there = f"Yes, {other.name}." if other in tools else "None of them does this."
    question, answer = rng.choice(
        [
            (f"What does {tool.name} take?", names),
            (f"What does {tool.name} require?", required),
            (f"What is there to {tool.action}?", tool.name),
            ("Which tools are there?", ", ".join(t.name for t in tools)),
            (f"Is there a tool to {other.action}?", there),
        ]
    )
    return _turn(question, answer)


def tools_document(rng: random.Random) -> list[Message]:
    """A tool list, and turns about it."""
    tools = _toolset(rng)
    makers = rng.choices([note_turn, reading_turn], weights=(3, 1), k=rng.randint(1, 3))
    return [_system(tools, rng), *(message for maker in makers for message in maker(tools, rng))]


def _value(rng: random.Random) -> Any:
    """Something to say again: a value, a number, a made-up word, or any word of the word lists."""
    value = sample_value(rng.choice(TEXTS), "", rng, held_out=False)
    return rng.choice([value, rng.randint(1, 9999), _any_word(rng), _any_word(rng)])


def echo_document(rng: random.Random) -> list[Message]:
    """A few values, said again."""
    text = rng.choice([" ", ", ", "; "]).join(str(_value(rng)) for _ in range(rng.randint(3, 9)))
    return _turn(text, text)


def recall_document(rng: random.Random) -> list[Message]:
    """Named values, and some of them asked for by name."""
    pairs = {_name_word(rng): _value(rng) for _ in range(rng.randint(3, 6))}
    told = rng.choice([", ", "; ", "\n"]).join(
        f"{name} {rng.choice(['is', '=', ':'])} {v}" for name, v in pairs.items()
    )
    first, *others = rng.sample(list(pairs.items()), min(3, len(pairs)))
    turns = _turn(f"{told}. What is {first[0]}?", str(first[1]))
    return turns + [message for name, value in others for message in _turn(f"And {name}?", str(value))]


def make_document(index: int, seed: int) -> list[Message]:
    """Make one document, a list of chat messages; the same numbers give the same document."""
    rng = random.Random(f"pretraining-{seed}-{index}")
    makers: list[Callable[[random.Random], list[Message]]] = [tools_document, echo_document, recall_document]
    return rng.choices(makers, weights=(5, 3, 2))[0](rng)


@declared
class PretrainingDataModule(LightningDataModule):
    """Documents packed like fine-tuning rows; the assistant's turns are supervised.

    Args:
        tokenizer: The folder of the tokenizer and its chat template (`model.init_args.init_from`).
        documents: How many documents an epoch has.
        batch_size: Documents per optimizer step, over all ranks.
        max_length: Tokens of a packed row; longer documents are cut there.
        micro_batch_tokens: Tokens of one forward pass.
        seed: Seed of the documents and of their order.
    """

    def __init__(
        self,
        tokenizer: str,
        documents: int = 120000,
        batch_size: int = 12,
        max_length: int = 640,
        micro_batch_tokens: int = 8192,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)

    def setup(self, stage: str) -> None:
        """Load the tokenizer."""
        self.tokenizer = load_tokenizer(self.hparams.tokenizer)

    def train_dataloader(self) -> ResumableLoader:
        """Loader of `list[PackedBatch]`, one list per optimizer step."""
        h = self.hparams
        return ResumableLoader(h.documents, h.batch_size, self._packed, h.seed, digest=f"seed {h.seed}")

    def val_dataloader(self) -> list[Any]:
        """An empty list: there is nothing to validate on."""
        return []

    def document(self, index: int) -> list[Message]:
        """The chat of an index of the epoch."""
        return make_document(index, self.hparams.seed)

    def encode(self, chat: list[Message]) -> Encoded:
        """Encode a chat; the assistant's turns are supervised, their end tokens included."""
        text, ids, segments = "", [], []
        for turn, message in enumerate(chat):
            if message["role"] == "assistant":
                prompt = self.tokenizer.apply_chat_template(chat[:turn], tokenize=False, add_generation_prompt=True)
                answer = message["content"] + self.tokenizer.eos_token
                for piece, segment in ((prompt[len(text) :], PROMPT), (answer, CALL)):
                    piece_ids = self.tokenizer(piece, add_special_tokens=False)["input_ids"]
                    ids += piece_ids
                    segments += [segment] * len(piece_ids)
                text = prompt + answer
        limit = self.hparams.max_length
        return Encoded(ids[:limit], segments[:limit])

    def _packed(self, indices: list[int]) -> list[PackedBatch]:
        """This rank's share of a global batch, in micro-batches; empty where there are more ranks than documents."""
        h, (rank, ranks) = self.hparams, (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        documents = [self.encode(self.document(index)) for index in indices[rank::ranks]]
        lengths = [len(document.input_ids) for document in documents]
        packed = getattr(getattr(self.trainer, "lightning_module", None), "packed", True)
        plan = micro_batches(lengths, h.max_length, h.micro_batch_tokens, packed)
        return [collate_packed(documents, rows) for rows in plan]

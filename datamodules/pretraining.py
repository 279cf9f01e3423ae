"""General text for the tiny base model: it teaches to read a tool list and to copy, not the form of the answers.

A document is a chat in the base model's own template, or plain text. It uses the generator of the shipped corpus with
its training values and wordings, and half of its tools are invented, with made-up names, so that reading the list pays
more than remembering it. No document holds `<think>` or a python call.
"""

import json
import random
from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningDataModule

from datamodules.chat import load_tokenizer
from datamodules.loading import ResumableLoader
from datamodules.packing import CALL, Encoded, PackedBatch, collate_packed, micro_batches
from datamodules.toolbox import FUNCTIONS, Function, Parameter, request_text, sample_arguments
from datamodules.toolbox_values import BANKS

Message = dict[str, str]
SEEN = [function for function in FUNCTIONS if not function.unseen and function.parameters]
KINDS = (
    "city",
    "person",
    "title",
    "date",
    "time",
    "code",
    "topic",
    "product",
    "file",
    "email",
    "street",
    "colour",
    "int",
    "float",
    "flag",
    "list",
)
SYSTEM_LINES = ("Tools:", "These tools are offered.", "Here is what can be called:", "The list of tools follows.")
OPENINGS = ("{}.", "Please {}.", "I want to {}.", "Could you {}?", "We have to {}.")


def _pseudo_word(rng: random.Random) -> str:
    return "".join(rng.choice(BANKS["syllable"]) for _ in range(rng.randint(2, 3)))


def invented_function(rng: random.Random) -> Function:
    """A function with made-up names and one to four parameters."""
    verb, noun = rng.choice("get find set make send check open list".split()), _pseudo_word(rng)
    parameters = []
    for name in sorted({_pseudo_word(rng) for _ in range(rng.randint(1, 4))}):
        kind = rng.choice(KINDS)
        options = {"int": "1,999", "float": "1,99", "list": rng.choice(KINDS[:6])}.get(kind, "")
        phrase = f"with {name}" if kind == "flag" else f"{rng.choice(['with', 'for', 'at', 'by', 'using'])} {name} {{}}"
        parameters.append(Parameter(name, kind, options, rng.choice([None, None, "none"]), phrase))
    return Function(f"{verb}_{noun}", f"{verb} the {noun}", "invented", tuple(parameters), False)


def _toolset(rng: random.Random) -> list[Function]:
    size = rng.randint(1, 4)
    if rng.random() < 0.5:
        return rng.sample(SEEN, size)
    return [invented_function(rng) for _ in range(size)]


def _system(tools: list[Function], rng: random.Random) -> Message:
    listed = json.dumps([tool.tool() for tool in tools])
    return {"role": "system", "content": f"{rng.choice(SYSTEM_LINES)}\n{listed}"}


def _note(function: Function, arguments: dict[str, Any], style: int) -> str:
    pairs = list(arguments.items())
    if style == 0:
        return "\n".join([f"tool: {function.name}", *(f"{name}: {value}" for name, value in pairs)])
    if style == 1:
        return json.dumps({"tool": function.name, **arguments})
    if style == 2:
        said = " ".join(f"The {name} is {value}." for name, value in pairs)
        return f"To {function.action} there is {function.name}. {said}"
    return f"{function.name} with " + "; ".join(f"{name} {value!r}" for name, value in pairs)


def note_document(rng: random.Random) -> list[Message]:
    """A request, and a note of which tool serves it and what was found for each parameter."""
    tools = _toolset(rng)
    wanted = (
        [rng.choice(tools)] * rng.randint(1, 3) if rng.random() < 0.5 else rng.sample(tools, rng.randint(1, len(tools)))
    )
    wanted = wanted[:3]
    asked = [(function, sample_arguments(function, rng, held_out=False)) for function in wanted]
    query = rng.choice([" and ", ", then ", ". Also "]).join(request_text(f, a, rng, held_out=False) for f, a in asked)
    style = rng.randrange(4)
    notes = "\n".join(_note(function, arguments, style) for function, arguments in asked)
    return [
        _system(tools, rng),
        {"role": "user", "content": rng.choice(OPENINGS).format(query)},
        {"role": "assistant", "content": notes},
    ]


def reading_document(rng: random.Random) -> list[Message]:
    """Questions about a tool list."""
    tools = _toolset(rng)
    messages = [_system(tools, rng)]
    for _ in range(3):
        tool = rng.choice(tools)
        names = ", ".join(p.name for p in tool.parameters)
        required = ", ".join(p.name for p in tool.parameters if p.default is None) or "nothing"
        question, answer = rng.choice(
            [
                (f"What does {tool.name} take?", names),
                (f"What does {tool.name} require?", required),
                (f"What is there to {tool.action}?", tool.name),
                ("Which tools are there?", ", ".join(t.name for t in tools)),
                (f"Is there a tool to {rng.choice(SEEN).action}?", None),
            ]
        )
        if answer is None:
            action = question[len("Is there a tool to ") : -1]
            found = [t.name for t in tools if t.action == action]
            answer = f"Yes, {found[0]}." if found else "None of them does this."
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return messages


def copying_document(rng: random.Random) -> list[Message]:
    """A list of named values, and questions that repeat some of them."""
    function = invented_function(rng) if rng.random() < 0.5 else rng.choice(SEEN)
    arguments = sample_arguments(function, rng, held_out=False) or {"name": _pseudo_word(rng)}
    pairs = [*arguments.items(), *((_pseudo_word(rng), rng.randint(1, 9999)) for _ in range(3))]
    rng.shuffle(pairs)
    told = rng.choice([", ", "; ", "\n"]).join(
        f"{name} {rng.choice(['is', '=', ':'])} {value}" for name, value in pairs
    )
    messages = [{"role": "user", "content": told}]
    for name, value in rng.sample(pairs, min(3, len(pairs))):
        messages += [{"role": "assistant", "content": f"{name}: {value!r}"}, {"role": "user", "content": "Next?"}]
    return messages[:-1]


def make_document(index: int, seed: int) -> list[Message]:
    """Make one document, a list of chat messages; the same numbers give the same document."""
    rng = random.Random(f"pretraining-{seed}-{index}")
    makers: list[Callable[[random.Random], list[Message]]] = [note_document, reading_document, copying_document]
    return rng.choices(makers, weights=(6, 2, 2))[0](rng)


class PretrainingDataModule(LightningDataModule):
    """Documents packed like fine-tuning rows, every token of them supervised.

    Args:
        tokenizer: The folder of the tokenizer and its chat template (`model.init_args.init_from`).
        documents: How many documents an epoch has.
        batch_size: Documents per optimizer step.
        max_length: Tokens of a packed row; longer documents are cut there.
        micro_batch_tokens: Tokens of one forward pass.
        seed: Seed of the documents and of their order.
    """

    def __init__(
        self,
        tokenizer: str,
        documents: int = 50000,
        batch_size: int = 24,
        max_length: int = 512,
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
        return ResumableLoader(self.hparams.documents, self.hparams.batch_size, self._packed, self.hparams.seed)

    def val_dataloader(self) -> list[Any]:
        """Nothing to validate on: the base model is judged by what it becomes."""
        return []

    def _packed(self, indices: list[int]) -> list[PackedBatch]:
        h = self.hparams
        chats = [make_document(index, h.seed) for index in indices]
        texts = [self.tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]
        encoded = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        documents = [Encoded(ids[: h.max_length], [CALL] * min(len(ids), h.max_length)) for ids in encoded]
        lengths = [len(document.input_ids) for document in documents]
        plan = micro_batches(lengths, h.max_length, h.micro_batch_tokens)
        return [collate_packed(documents, rows) for rows in plan]

"""The tiny base model's text: it has the words of functions that training never shows, and none of these functions."""

import random
import re
from itertools import islice

from recorder import at_rank

from datamodules.toolbox.catalogue import FUNCTIONS
from datamodules.toolbox.pretraining import NAMES, PretrainingDataModule, invented_function, make_document

UNSEEN = {function.name for function in FUNCTIONS if function.unseen}


def documents(count: int) -> list[str]:
    return ["\n".join(message["content"] for message in make_document(index, seed=5)) for index in range(count)]


def test_documents_name_no_unseen_function_and_have_the_words_that_their_names_are_made_of():
    texts = documents(3000)
    assert not UNSEEN & {name for text in texts for name in re.findall("[a-z_]+", text)}
    read = {word for text in texts for word in re.findall("[a-z]+", text)}
    assert {word for name in UNSEEN for word in name.split("_")} <= read


def test_no_document_holds_the_form_of_an_answer():
    for text in documents(300):
        assert "<think>" not in text
        assert not re.search(r"\[\w+\(", text)


def test_invented_functions_are_none_of_the_catalogue_and_can_be_called_by_keyword():
    rng = random.Random(0)
    for function in islice(iter(lambda: invented_function(rng), None), 500):
        assert function.name not in NAMES
        compile(f"{function.name}({', '.join(f'{p.name}=0' for p in function.parameters)})", "", "eval")


def test_ranks_share_the_documents_of_a_step():
    data = PretrainingDataModule("assets/tiny-base", documents=5, batch_size=5)
    shares = []
    for rank in range(2):
        (step,) = at_rank(data, rank, 2).train_dataloader()
        shares.append(sum(len(set(row.tolist()) - {-1}) for micro in step for row in micro["doc_ids"]))
    assert shares == [3, 2]

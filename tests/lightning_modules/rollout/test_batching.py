"""Chain-of-thought masks of generated ids against byte and offset oracles, and rollouts packed into micro-batches."""

import copy

import pytest
import torch
from families import FAMILIES
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lightning_modules.policy.lora import LoRA
from lightning_modules.policy.model import build_policy
from lightning_modules.rollout.batching import cot_mask, pack_rollouts

TEXT = "<think>The user wants the weather in Zürich 😀, so get_weather fits.</think>\n\n[get_weather(city='Zürich')]"


@pytest.fixture(scope="module")
def added_tokenizer(tiny_tokenizer):
    """The same tokenizer with each tag as one added token, as in Qwen3."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_tokens(["<think>", "</think>"])
    return tokenizer


@pytest.fixture(params=["tiny_tokenizer", "added_tokenizer"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def byte_ids(tiny_tokenizer):
    """Ids that spell any bytes, one each."""
    symbols = pre_tokenizers.ByteLevel.alphabet()
    by_byte = {bytes_of(symbol): tiny_tokenizer.convert_tokens_to_ids(symbol) for symbol in symbols}
    return lambda data: [by_byte[bytes([byte])] for byte in data]


def bytes_of(name):
    """The byte that a symbol of GPT-2's byte alphabet stands for: itself if printable, else counted from U+0100."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return bytes([ord(name) if ord(name) < 256 else others[ord(name) - 256]])


def by_offsets(tokenizer, text):
    """Ids of a text, and which of them its offsets place between the tags."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    start, end = text.index("<think>") + len("<think>"), text.index("</think>")
    return encoded["input_ids"], [start <= a and b <= end for a, b in encoded["offset_mapping"]]


def test_tokens_between_the_tags(tokenizer):
    ids, expected = by_offsets(tokenizer, TEXT)
    mask = cot_mask(tokenizer, ids)
    assert mask == expected
    inside = tokenizer.decode([i for i, kept in zip(ids, mask, strict=True) if kept])
    assert inside in "The user wants the weather in Zürich 😀, so get_weather fits."
    assert len(inside) >= 55  # all but, in the tiny tokenizer, the letters that share a token with a tag


def test_the_two_tokenizers_spell_the_tags_as_the_tests_mean_them(tiny_tokenizer, added_tokenizer):
    assert len(tiny_tokenizer("<think>")["input_ids"]) > 1 and len(tiny_tokenizer("</think>")["input_ids"]) > 1
    assert len(added_tokenizer("<think>")["input_ids"]) == 1 == len(added_tokenizer("</think>")["input_ids"])


def test_one_token_that_holds_tag_and_text_is_not_between(tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_tokens([">The", "ok</"])
    ids = tokenizer("<think>The answer is ok</think>[]")["input_ids"]
    tokens = [tokenizer.decode([i]) for i in ids]
    mask = cot_mask(tokenizer, ids)
    assert ">The" in tokens and "ok</" in tokens
    assert "".join(t for t, kept in zip(tokens, mask, strict=True) if kept) == " answer is "
    assert mask == [tokens.index(">The") < i < tokens.index("ok</") for i in range(len(ids))]


def test_nothing_lies_between_adjacent_straddling_tokens(tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_tokens([">ok</"])
    ids = tokenizer("<think>ok</think>[]")["input_ids"]
    assert tokenizer.convert_tokens_to_ids(">ok</") in ids
    assert not any(cot_mask(tokenizer, ids))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "<think>never closed",
        "never opened</think>[]",
        "</think>the wrong way round<think>[]",
        "<think></think>[]",
        "<think> \n </think>[]",
        "<think>a</think><think>b</think>[]",
        "<think>a<think>b</think>[]",
        "<think>a</think>b</think>[]",
        "Sure! <think>a</think>[]",
    ],
)
def test_without_a_well_formed_block_nothing_is_between(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert cot_mask(tokenizer, ids) == [False] * len(ids)


def test_other_tags_that_a_reward_of_ones_own_reads_hold_no_tokens(tiny_tokenizer):
    ids = tiny_tokenizer("<reason>Paris.</reason>[]", add_special_tokens=False)["input_ids"]
    assert cot_mask(tiny_tokenizer, ids, well_formed=True) == [False] * len(ids)


def test_space_before_and_the_end_of_the_turn_after_are_no_matter(tokenizer):
    ids, expected = by_offsets(tokenizer, " \n" + TEXT)
    assert any(expected) and cot_mask(tokenizer, [*ids, tokenizer.eos_token_id]) == [*expected, False]


@settings(max_examples=60, deadline=None)
@given(cot=st.binary(min_size=1, max_size=40), answer=st.binary(max_size=10))
def test_bytes_one_by_one_whatever_they_spell(tiny_tokenizer, byte_ids, cot, answer):
    data = b"<think>" + cot + b"</think>" + answer
    mask = cot_mask(tiny_tokenizer, byte_ids(data))
    thought = cot.decode("utf-8", "replace").strip()
    inside = range(len("<think>"), len("<think>") + len(cot)) if thought else ()
    assert mask == [i in inside for i in range(len(data))]


@settings(max_examples=60, deadline=None)
@given(cot=st.text(st.characters(codec="utf-8", exclude_characters="<>"), min_size=1, max_size=40))
def test_encoded_text_against_its_offsets(tiny_tokenizer, added_tokenizer, cot):
    for tokenizer in (tiny_tokenizer, added_tokenizer):
        ids, expected = by_offsets(tokenizer, f"<think>{cot}</think>[]")
        assert cot_mask(tokenizer, ids) == (expected if cot.strip() else [False] * len(ids))


@settings(max_examples=60, deadline=None)
@given(ids=st.lists(st.integers(0, 400), max_size=40))
def test_any_ids_have_a_mask(tiny_tokenizer, ids):
    """Ids above 319 are those of a model whose embedding is wider than its tokenizer's vocabulary."""
    mask = cot_mask(tiny_tokenizer, ids)
    assert len(mask) == len(ids) and all(type(kept) is bool for kept in mask)


def test_byte_fallback_whose_half_characters_decode_to_more_characters_than_whole_ones():
    tokens = ["<think>", "</think>", "\u2581a", "b", *(f"<0x{byte:02X}>" for byte in range(256))]
    backend = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="b"))
    replace, strip = decoders.Replace("\u2581", " "), decoders.Strip(" ", 1, 0)
    backend.decoder = decoders.Sequence([replace, decoders.ByteFallback(), decoders.Fuse(), strip])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    smile = [tokens.index(f"<0x{byte:02X}>") for byte in "😀".encode()]
    assert len(tokenizer.decode(smile[:3])) == 3 and tokenizer.decode(smile) == "😀"
    ids = [0, 2, *smile, *smile, 1, 3, *smile]
    assert cot_mask(tokenizer, ids) == [False] + [True] * 9 + [False] * 6
    assert cot_mask(tokenizer, [0, *smile[:2], 1, 3]) == [False, True, True, False, False]


PROMPTS = [[1, 2, 3], [1, 2, 3], [4, 5], [6]]
COMPLETIONS = [[10, 11, 12, 13], [20], [30, 31, 32], [40, 41]]
COT = [[False, True, True, False], [False], [True, False, False], [False, False]]


def scored(batch):
    """Rollout, place and segment of each target, with the target, in the order in which a model scores them."""
    mask = batch["targets"] != -100
    return list(
        zip(*(batch[name][mask].tolist() for name in ("doc_ids", "tokens", "segments", "targets")), strict=True)
    )


@pytest.mark.parametrize(("max_length", "budget"), [(7, 7), (7, 14), (13, 26), (40, 40)])
@pytest.mark.parametrize("chosen", [None, [3, 1], [2, 0, 3]])
@pytest.mark.parametrize("shared", [False, True])
def test_every_completion_token_is_a_target_once(max_length, budget, chosen, shared):
    batches = pack_rollouts(PROMPTS, COMPLETIONS, COT, max_length, budget, chosen, shared=shared)
    flat = sum(COMPLETIONS, [])  # noqa: RUF017
    expected, place = [], 0
    for i, (completion, cot) in enumerate(zip(COMPLETIONS, COT, strict=True)):
        for token, inside in zip(completion, cot, strict=True):
            if chosen is None or i in chosen:
                expected.append((i, place, 1 if inside else 2, token))
            assert flat[place] == token
            place += 1
    assert sorted(row for batch in batches for row in scored(batch)) == expected
    for batch in batches:
        rows, width = batch["input_ids"].shape
        assert width <= (max(max_length, budget) if shared else max_length) and (rows == 1 or rows * width <= budget)
        assert all(tensor.dtype == torch.long and tensor.shape == (rows, width) for tensor in batch.values())
        assert ((batch["tokens"] < 0) == (batch["targets"] == -100)).all()


def test_one_row_by_hand():
    (batch,) = pack_rollouts(PROMPTS, COMPLETIONS, COT, 14, 14, [2, 0])
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {  # rollout 0 is the longer one: it comes first
        "input_ids": [[1, 2, 3, 10, 11, 12, 13, 4, 5, 30, 31, 32]],
        "position_ids": [[0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4]],
        "targets": [[-100, -100, 10, 11, 12, 13, -100, -100, 30, 31, 32, -100]],
        "segments": [[0, 0, 2, 1, 1, 2, 0, 0, 1, 2, 2, 0]],
        "doc_ids": [[0] * 7 + [2] * 5],
        "tokens": [[-1, -1, 0, 1, 2, 3, -1, -1, 5, 6, 7, -1]],  # rollout 1 has place 4
    }


def test_a_shared_prompt_by_hand():
    completions, cot = [[10, 11], [20], [21, 22]], [[True, False], [False], [False, True]]
    (batch,) = pack_rollouts([[1, 2, 3]] * 3, completions, cot, 5, 10, shared=True)
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[1, 2, 3, 10, 11, 3, 20, 3, 21, 22]],  # the last token of the prompt is there for each of them
        "position_ids": [[0, 1, 2, 3, 4, 2, 3, 2, 3, 4]],
        "targets": [[-100, -100, 10, 11, -100, 20, -100, 21, 22, -100]],
        "segments": [[0, 0, 1, 2, 0, 2, 0, 2, 1, 0]],
        "doc_ids": [[0] * 5 + [1] * 2 + [2] * 3],
        "tokens": [[-1, -1, 0, 1, -1, 2, -1, 3, 4, -1]],
    }
    for budget in (7, 8):  # 5 + 2 are 7, and the third would be 3 more; alone it is 5 again
        batches = pack_rollouts([[1, 2, 3]] * 3, completions, cot, 5, budget, shared=True)
        assert [batch["position_ids"].tolist() for batch in batches] == [[[0, 1, 2, 3, 4, 2, 3]], [[0, 1, 2, 3, 4]]]
    batches = pack_rollouts([[1, 2], [1, 3], [1, 2]], completions, cot, 4, 9, shared=True)  # 4, 3 and 4
    assert [batch["position_ids"].tolist() for batch in batches] == [[[0, 1, 2, 3, 0, 1, 2, 3]], [[0, 1, 2]]]


# Norms are computed in float32 in models of float64, too: what differs in the last bit before them differs by more.
@pytest.mark.parametrize(
    ("kind", "dtype", "tolerance"),
    [
        ("gpt_neox", torch.float64, 1e-10),  # whose norms are float64, then
        ("qwen2", torch.float32, 1e-5),
        ("gemma3_text", torch.float32, 1e-5),  # with a window of 6 in every second layer
        ("gemma3_text", torch.float64, 1e-6),
    ],
)
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("lora", [None, LoRA(r=4)])
def test_gradients_of_rollouts_that_share_their_prompt_are_those_of_each_alone(
    kind, lora, checkpointing, dtype, tolerance, tmp_path, tiny_tokenizer
):
    [family] = [family for family in FAMILIES if family.kind == kind]
    folder = family.save(tmp_path, tiny_tokenizer)
    policy = build_policy(str(folder), lora, gradient_checkpointing=checkpointing, dtype=dtype)
    draw = torch.Generator().manual_seed(1)
    sizes = [(12, 5), (12, 1), (12, 9), (12, 0), (3, 4), (3, 8), (1, 6), (1, 2), (7, 3)]  # of prompt and completion
    ids = torch.randint(3, 320, (100,), generator=draw).tolist()
    prompts = [ids[size : 2 * size] for size, _ in sizes]
    completions = [ids[7 * i : 7 * i + size] for i, (_, size) in enumerate(sizes)]
    cot = [[False] * size for _, size in sizes]
    weights = torch.randn(sum(size for _, size in sizes), generator=draw, dtype=dtype)

    def scores_and_gradients(budget, **options):
        policy.zero_grad()
        scores = torch.zeros_like(weights)
        for batch in pack_rollouts(prompts, completions, cot, 21, budget, **options):
            places = batch["tokens"][batch["targets"] != -100]
            logprobs = policy(batch["input_ids"], batch["position_ids"], batch["targets"], temperature=0.9).logprobs
            (logprobs * weights[places]).sum().div(len(weights)).backward()
            scores[places] = logprobs.detach()
        return {"scores": scores} | {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}

    want = scores_and_gradients(1, packed=False)
    policy.by_document = True
    for budget in (25, 200):  # groups are cut, and all is in one row
        got = scores_and_gradients(budget, shared=True)
        assert got.keys() == want.keys() and len(got) > 10
        for name, values in want.items():
            atol = tolerance * max(1.0, float(values.abs().max()))
            torch.testing.assert_close(got[name], values, rtol=0, atol=atol, msg=name)


def test_scores_find_their_tokens_however_they_were_packed(tiny_model_dir):
    policy = build_policy(str(tiny_model_dir)).eval()

    def scores(max_length, budget, order):
        found = torch.full((10,), torch.nan)
        with torch.no_grad():
            for batch in pack_rollouts(PROMPTS, COMPLETIONS, COT, max_length, budget, order):
                places = batch["tokens"][batch["targets"] != -100]
                found[places] = policy(batch["input_ids"], batch["position_ids"], batch["targets"]).logprobs
        return found

    alone = scores(7, 1, None)  # one rollout at a time
    assert not alone.isnan().any() and len(alone.unique()) == 10
    torch.testing.assert_close(scores(40, 40, [3, 0, 2, 1]), alone)
    torch.testing.assert_close(scores(9, 18, None), alone)


def test_nothing_to_pack():
    assert pack_rollouts(PROMPTS, COMPLETIONS, COT, 10, 10, []) == [] == pack_rollouts([], [], [], 10, 10)


def test_bad_rollouts_are_refused():
    with pytest.raises(ValueError, match="7 tokens, more than the 6 that a row may hold"):
        pack_rollouts(PROMPTS, COMPLETIONS, COT, 6, 12)
    with pytest.raises(ValueError, match="empty prompt"):
        pack_rollouts([[]], [[1]], [[False]], 6, 12)
    with pytest.raises(ValueError, match="zip"):
        pack_rollouts([[1]], [[1, 2]], [[False]], 6, 12)

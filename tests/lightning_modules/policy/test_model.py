"""Building, scoring and exporting the policy on a random two-layer Qwen2."""

import json
import shutil

import pytest
import torch
from families import seeing_model
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_modules.checkpointing.export import export_hf
from lightning_modules.objectives import Totals, multiscale_loss
from lightning_modules.policy.lora import LoRA
from lightning_modules.policy.model import build_policy

LENGTHS = [9, 3, 14, 1, 6, 2, 11, 5]


def documents(vocabulary=320):
    """Eight documents: a prompt of a third, then CoT, then call; the one of length 1 has no target at all."""
    generator = torch.Generator().manual_seed(3)
    result = []
    for length in LENGTHS:
        ids = torch.randint(vocabulary, (length,), generator=generator)
        segments = torch.tensor([0] * (length // 3) + [1] * (length // 3) + [2] * (length - 2 * (length // 3)))
        targets = torch.cat([torch.where(segments[1:] > 0, ids[1:], -100), torch.tensor([-100])])
        result.append((ids, targets, torch.cat([segments[1:], torch.tensor([0])])))
    return result


def packed(rows, docs):
    """Rows of document numbers as tensors [R, T]; the padding tail is a document of its own without targets."""
    width = max(sum(len(docs[i][0]) for i in row) for row in rows)
    columns = []
    for row in rows:
        pad = width - sum(len(docs[i][0]) for i in row)
        ids = torch.cat([*(docs[i][0] for i in row), torch.zeros(pad, dtype=torch.long)])
        positions = torch.cat([*(torch.arange(len(docs[i][0])) for i in row), torch.arange(pad)])
        targets = torch.cat([*(docs[i][1] for i in row), torch.full((pad,), -100)])
        segments = torch.cat([*(docs[i][2] for i in row), torch.zeros(pad, dtype=torch.long)])
        samples = torch.cat([*(torch.full((len(docs[i][0]),), i) for i in row), torch.full((pad,), -1)])
        columns.append((ids, positions, targets, segments, samples))
    return [torch.stack(tensors) for tensors in zip(*columns, strict=True)]


def by_document(logprobs, targets, samples):
    owner = samples[targets != -100]
    return [logprobs[owner == i] for i in range(len(LENGTHS))]


ROWS = [[0, 1, 2], [3, 4, 5, 6], [7]]
MODES = ["eval", "train", "checkpointing"]


def policy_in(mode, folder, **options):
    policy = build_policy(str(folder), gradient_checkpointing=mode == "checkpointing", **options)
    return policy.eval() if mode == "eval" else policy


@pytest.mark.parametrize("lora", [None, LoRA(r=4)])
@pytest.mark.parametrize("mode", MODES)
def test_packed_logprobs_equal_those_of_one_document_at_a_time(tiny_model_dir, mode, lora):
    policy, docs = policy_in(mode, tiny_model_dir, lora=lora), documents()
    with torch.set_grad_enabled(mode != "eval"):
        ids, positions, targets, _, samples = packed(ROWS, docs)
        scores = policy(ids, positions, targets, entropy=True)
        together = by_document(scores.logprobs, targets, samples)
        entropies = by_document(scores.entropy, targets, samples)
        for i, (document, document_targets, _) in enumerate(docs):
            # The oracle: plain transformers, all logits, one document.
            logits = policy.causal_lm(document[None], use_cache=False).logits[0].double()
            log_p, wanted = torch.log_softmax(logits, -1), document_targets != -100
            alone = log_p[wanted].gather(1, document_targets[wanted, None]).squeeze(1)
            torch.testing.assert_close(together[i].double(), alone, rtol=0, atol=2e-5)
            torch.testing.assert_close(entropies[i].double(), -(log_p.exp() * log_p).sum(-1)[wanted], rtol=0, atol=2e-5)


@pytest.mark.parametrize("mode", ["train", "checkpointing"])
@pytest.mark.parametrize("reduction", ["sample", "token"])
@pytest.mark.parametrize("splits", [1, 2, 4])
def test_gradient_of_packed_micro_batches_equals_one_document_training(tiny_model_dir, splits, reduction, mode):
    policy, docs = policy_in(mode, tiny_model_dir, dtype=torch.float64), documents()
    alpha = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
    supervised = [torch.bincount(segments, minlength=3) for _, _, segments in docs]
    counts = sum(supervised)
    totals = Totals(samples=sum(int(c[1:].sum() > 0) for c in supervised), cot=float(counts[1]), call=float(counts[2]))

    def gradients(batches):
        policy.zero_grad()
        alpha.grad = None
        for rows in batches:
            ids, positions, targets, segments, samples = packed(rows, docs)
            scored = targets != -100
            nll = -policy(ids, positions, targets).logprobs
            multiscale_loss(nll, segments[scored], samples[scored], alpha, reduction, totals)[0].backward()
        return {"alpha": alpha.grad.clone()} | {k: p.grad.clone() for k, p in policy.named_parameters()}

    rows = [[0, 3], [1, 2], [4, 5], [6, 7]]
    micro_batches = {1: [rows], 2: [rows[:2], rows[2:]], 4: [[row] for row in rows]}[splits]
    got, want = gradients(micro_batches), gradients([[[i]] for i in range(len(docs))])
    assert got.keys() == want.keys()
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=0, atol=1e-9)
    assert want["alpha"].abs() > 1e-3 and want["model.model.embed_tokens.weight"].abs().max() > 1e-3


def test_restarting_positions_are_what_an_explicit_block_mask_is_to_transformers(tiny_model_dir):
    policy, docs = policy_in("eval", tiny_model_dir), documents()
    ids, positions, targets, _, samples = packed(ROWS, docs)
    same = samples[:, None, :, None] == samples[:, None, None, :]
    causal = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
    with torch.no_grad():
        logits = policy.causal_lm(ids, attention_mask=same & causal, position_ids=positions, use_cache=False).logits
        got = policy(ids, positions, targets).logprobs
    scored = targets != -100
    masked = logits[scored].log_softmax(-1).gather(1, targets[scored, None]).squeeze(1)
    torch.testing.assert_close(got, masked, rtol=0, atol=1e-5)


def test_temperature_divides_the_logits(tiny_model_dir):
    policy = policy_in("eval", tiny_model_dir)
    ids, targets = torch.tensor([[5, 6, 7]]), torch.tensor([[-100, 7, -100]])
    with torch.no_grad():
        logits = policy.causal_lm(ids).logits[0, 1]
        got = policy(ids, torch.arange(3)[None], targets, temperature=0.5).logprobs
    assert got.item() == pytest.approx(torch.log_softmax(logits / 0.5, -1)[7].item(), abs=1e-5)


def test_no_targets_still_reach_every_parameter(tiny_model_dir):
    policy = policy_in("train", tiny_model_dir)
    ids = torch.tensor([[5, 6]])
    policy(ids, torch.arange(2)[None], torch.full((1, 2), -100)).logprobs.sum().backward()
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in policy.parameters())


def test_lora_trains_adapters_only_and_changes_the_scores(tiny_model_dir):
    policy = policy_in("checkpointing", tiny_model_dir, lora=LoRA(r=4, alpha=8, dropout=0.0))
    trained = [name for name, p in policy.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 2 * 7 and all(".lora_" in name for name in trained)  # A and B, 2 layers, 7 matrices each
    ids, targets = torch.tensor([[5, 6, 7]]), torch.tensor([[6, 7, -100]])
    before = policy(ids, torch.arange(3)[None], targets).logprobs
    before.sum().backward()
    assert all(p.grad is not None for p in policy.parameters() if p.requires_grad)
    perturb_adapters(policy)
    assert not torch.allclose(policy(ids, torch.arange(3)[None], targets).logprobs, before)


def perturb_adapters(policy):
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if ".lora_B." in name:  # peft starts it at zero
                parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("lora", [None, LoRA(r=4)])
def test_export_loads_to_equal_logits_and_leaves_the_live_model_as_it_was(tiny_model_dir, tmp_path, lora):
    policy = policy_in("eval", tiny_model_dir, lora=lora, dtype=torch.float64)
    perturb_adapters(policy)
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    folder = tmp_path / "run" / "hf"
    export_hf(policy, AutoTokenizer.from_pretrained(tiny_model_dir), folder)
    assert all(torch.equal(tensor, before[name]) for name, tensor in policy.state_dict().items())

    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        live = policy.causal_lm(ids).logits
        merged = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, dtype=torch.float64)(ids).logits
    torch.testing.assert_close(merged, live, rtol=0, atol=1e-10)  # where weights lie in memory can move the last bit
    assert AutoTokenizer.from_pretrained(folder).chat_template.startswith("{% for message in messages %}")
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["Qwen2ForCausalLM"]
    assert [path.name for path in folder.parent.iterdir()] == ["hf"]  # nothing is left beside it
    assert (folder / "adapter").exists() == (lora is not None)
    if lora is not None:
        with torch.no_grad():
            adapted = AutoPeftModelForCausalLM.from_pretrained(folder / "adapter", dtype=torch.float64).eval()
            torch.testing.assert_close(adapted(ids).logits, live, rtol=0, atol=1e-10)


def test_export_replaces_an_earlier_folder_and_a_failed_one_leaves_it_whole(tiny_model_dir, tmp_path, monkeypatch):
    policy, tokenizer = policy_in("eval", tiny_model_dir), AutoTokenizer.from_pretrained(tiny_model_dir)
    folder = tmp_path / "hf"
    folder.mkdir()
    (folder / "old.txt").write_text("old")
    with monkeypatch.context() as patch:
        patch.setattr(type(tokenizer), "save_pretrained", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            export_hf(policy, tokenizer, folder)
    assert [path.name for path in folder.iterdir()] == ["old.txt"]
    export_hf(policy, tokenizer, folder)
    assert (folder / "model.safetensors").exists() and not (folder / "old.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_a_config_without_weights_gives_random_weights_by_the_global_seed(tiny_model_dir, tmp_path):
    shutil.copy(tiny_model_dir / "config.json", tmp_path)
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(build_policy(str(tmp_path)).state_dict()["model.model.embed_tokens.weight"])
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


def test_weights_are_loaded_as_float32_whatever_they_were_saved_as(tiny_model_dir, tmp_path):
    AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.bfloat16).save_pretrained(tmp_path)
    assert {p.dtype for p in build_policy(str(tmp_path)).parameters()} == {torch.float32}


@pytest.mark.parametrize("weights", [True, False])
def test_a_folder_that_asks_for_all_that_layers_give_gets_hidden_states_alone(tiny_model_dir, tmp_path, weights):
    folder = shutil.copytree(tiny_model_dir, tmp_path / "model")
    if not weights:
        (folder / "model.safetensors").unlink()
    path = folder / "config.json"
    asked = {"return_dict": False, "output_hidden_states": True, "output_attentions": True}
    path.write_text(json.dumps(json.loads(path.read_text()) | asked))
    policy = build_policy(str(folder))
    ids = torch.tensor([[5, 6, 7]])
    output = policy.causal_lm.model(ids)
    assert output.hidden_states is None and output.attentions is None
    assert policy(ids, ids, ids).logprobs.shape == (3,)


def test_bad_folders_are_named(tmp_path, tiny_model_dir):
    with pytest.raises(FileNotFoundError, match="no/such/folder"):
        build_policy(str(tmp_path / "no" / "such" / "folder"))
    with pytest.raises(FileNotFoundError, match=r"holds neither a config.json"):
        build_policy(str(tmp_path))
    shutil.copy(tiny_model_dir / "config.json", tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ValueError, match=r"holds no safetensors but pickles \(pytorch_model.bin\), which"):
        build_policy(str(tmp_path))


@pytest.mark.parametrize(("kind", "words"), [("t5", "T5Config"), ("frobnicate", "model type `frobnicate`")])
def test_architectures_that_are_no_causal_language_model_are_named_in_one_sentence(tmp_path, kind, words):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(ValueError, match=words) as error:
        build_policy(str(tmp_path))
    assert str(error.value).startswith(f"init_from: {tmp_path} ") and "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_heads_with_an_adapter_are_refused(tiny_model_dir):
    with pytest.raises(ValueError, match="one linear layer, without an adapter"):
        build_policy(str(tiny_model_dir), lora=LoRA(target_modules=["lm_head"]))


def test_layers_to_adapt_that_there_are_not_are_named_and_a_list_is_asked_for_where_a_pattern_was_meant_to_be_one(
    tiny_model_dir,
):
    with pytest.raises(
        ValueError, match=r"^model\.lora\.target_modules: .*q_proj.* for layers called so give \[q_proj\]"
    ):
        build_policy(str(tiny_model_dir), lora=LoRA(target_modules="q_proj"))
    with pytest.raises(ValueError, match=r"^model\.lora\.target_modules: .*nope") as raised:
        build_policy(str(tiny_model_dir), lora=LoRA(target_modules=["nope"]))
    assert "give [" not in str(raised.value)


@pytest.fixture(scope="module")
def seeing(tmp_path_factory):
    return seeing_model(tmp_path_factory.mktemp("seeing"))


@pytest.mark.parametrize("lora", [None, LoRA(r=4), LoRA(r=4, target_modules=["q_proj", "v_proj"])])
def test_what_learns_is_what_a_text_gives_a_gradient_though_the_model_can_see(seeing, lora):
    """DDP ends a run of which some of what learns has none."""
    policy = build_policy(seeing, lora)
    assert any("vision_tower" in name for name, _ in policy.named_parameters())
    ids, positions, targets, *_ = packed(ROWS, documents())
    policy(ids, positions, targets).logprobs.sum().backward()
    graded = {name for name, p in policy.named_parameters() if p.grad is not None}
    assert graded == {name for name, p in policy.named_parameters() if p.requires_grad}
    of_text = "model.model.language_model." if lora is None else "model.base_model.model.model.language_model."
    assert graded and all(name.startswith(of_text) for name in graded)  # the head is the embedding


def test_adapters_of_all_layers_sit_on_none_that_sees(seeing):
    names = [name for name, _ in build_policy(seeing, LoRA(r=4)).named_parameters() if "lora_" in name]
    assert len(names) == 2 * 2 * 7  # matrices, layers of text, and in each q, k, v, o, gate, up and down
    assert not any("vision_tower" in name for name in names)

"""The probe at load: what it allows, what it refuses, and what the command line makes of it."""

import pytest
import torch
from families import FAMILIES
from torch import nn

from datamodules.sft import XLAMSFTDataModule
from lightning_modules.cli import main
from lightning_modules.policy.lora import LoRA
from lightning_modules.policy.model import build_policy
from lightning_modules.policy.probe import known_leak, may_attend_by_document, probe, probe_everywhere, rounding

BY_KIND = {family.kind: family for family in FAMILIES}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_tokenizer):
    return lambda kind: BY_KIND[kind].save(tmp_path_factory.mktemp(kind), tiny_tokenizer)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
@pytest.mark.parametrize("kind", ["qwen2", "qwen3_moe", "gemma2", "lfm2", "gpt_oss"])
def test_the_verdict_is_that_of_float32_in_every_precision(folder, kind, precision):
    dtype = {"bf16-true": torch.bfloat16, "64-true": torch.float64}.get(precision, torch.float32)
    policy = build_policy(str(folder(kind)), dtype=dtype)
    leak = probe_everywhere(policy, None, mixed=precision == "bf16-mixed")
    assert (not leak) == BY_KIND[kind].packed
    assert not torch.is_autocast_enabled("cpu")


def test_a_probe_leaves_no_trace(folder):
    policy = build_policy(str(folder("qwen2")), lora=LoRA(r=4, dropout=0.5))
    state, weights = torch.get_rng_state(), {name: w.clone() for name, w in policy.state_dict().items()}
    assert probe(policy) == ""
    assert torch.equal(torch.get_rng_state(), state) and policy.training
    assert all(torch.equal(w, weights[name]) for name, w in policy.state_dict().items())
    assert all(p.grad is None for p in policy.parameters())


def test_the_default_device_is_not_that_of_the_documents(folder):
    policy = build_policy(str(folder("gemma2")))
    with torch.device("meta"):  # as Lightning has the GPU for it; what is made there without a device has no values
        assert probe_everywhere(policy, None, mixed=True) == ""
    assert policy.by_document and policy.shares_prefixes


def test_layers_that_do_not_tell_the_window_of_the_config_attend_under_a_mask(folder):
    policy = build_policy(str(folder("gemma2")))
    assert probe(policy) == "" and policy.by_document and policy.shares_prefixes
    policy.causal_lm.config.sliding_window = 50  # the layers keep their 6, which 50 would hide from the documents
    assert probe(policy) == "" and policy.packed and not policy.by_document and not policy.shares_prefixes


class Shifted(nn.Module):
    """Adds 1 to the logit of every second id, as no family does."""

    def __init__(self, forward):
        super().__init__()
        self.forward_of_model = forward

    def forward(self, **kwargs):
        output = self.forward_of_model(**kwargs)
        output.logits = output.logits + torch.arange(output.logits.shape[-1]) % 2
        return output


def test_a_head_that_is_not_the_models_own_is_refused_by_its_family(folder, monkeypatch):
    policy = build_policy(str(folder("qwen2")))
    monkeypatch.setattr(policy.causal_lm, "forward", Shifted(policy.causal_lm.forward).forward)
    with pytest.raises(ValueError, match=r"Qwen2ForCausalLM \(model_type qwen2\) does something to its logits"):
        probe(policy)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_model_whose_tokens_see_those_after_them_is_refused(folder, precision):
    policy = build_policy(str(folder("llama")))
    policy.causal_lm.config.is_causal = False  # as the model heeds it; loading would refuse such a config
    with pytest.raises(ValueError, match=r"^LlamaForCausalLM \(model_type llama\) is no causal language model: each"):
        probe_everywhere(policy, None, mixed=precision == "bf16-mixed")


def test_a_cap_that_is_left_out_is_seen(folder):
    policy = build_policy(str(folder("gemma2")))
    policy.after_head = policy.after_head._replace(softcap=None)
    with pytest.raises(ValueError, match="model_type gemma2"):
        probe(policy)


class OtherRanks:
    """The strategy of a rank that is not the first: it hears what the first has found."""

    is_global_zero = False

    def __init__(self, heard):
        self.heard = heard

    def broadcast(self, mine):
        assert mine == ("", False, False)
        return self.heard


def test_ranks_without_weights_take_the_verdict_of_the_first(folder, monkeypatch):
    policy = build_policy(str(folder("lfm2")), empty=True)
    assert probe_everywhere(policy, OtherRanks(("a state runs on", False, False)), mixed=False) == "a state runs on"
    assert not policy.by_document
    assert probe_everywhere(policy, OtherRanks(("", True, True)), mixed=False) == ""
    assert policy.by_document and policy.shares_prefixes
    monkeypatch.setattr("lightning_modules.ranks.of_every_rank", lambda mine: ["not its own", mine])
    with pytest.raises(ValueError, match="not its own"):
        probe_everywhere(policy, OtherRanks(("", True, True)), mixed=False)


def test_documents_have_rows_of_their_own_where_the_model_asks_for_it(tiny_model_dir, rows_file, tmp_path):
    lengths = []
    for packing in ("auto", False):  # to YAML, off is false
        data = XLAMSFTDataModule(
            str(tiny_model_dir), str(rows_file), packing=packing, cache_dir=str(tmp_path), batch_size=8
        )
        data.setup("fit")
        [batch, *_] = data.train_dataloader()
        lengths.append(
            [int(micro["doc_ids"][row].unique().numel()) for micro in batch for row in range(len(micro["doc_ids"]))]
        )
        assert sum(int(micro["doc_ids"].max()) + 1 for micro in batch) == 8
        assert all(micro["doc_ids"].numel() <= data.hparams.micro_batch_tokens for micro in batch)
    assert max(lengths[0]) > 2  # documents, and -1 for the padding
    assert max(lengths[1]) == 2 and len(lengths[1]) == 8
    with pytest.raises(ValueError, match="packing is 'sometimes'; give auto, on or off"):
        XLAMSFTDataModule(str(tiny_model_dir), str(rows_file), packing="sometimes")


def test_an_attention_kernel_that_a_family_lacks_is_eager_if_it_is_the_default_and_else_refused(folder, caplog):
    gpt_oss = folder("gpt_oss")
    assert build_policy(str(gpt_oss)).causal_lm.config._attn_implementation == "eager"
    assert "has no attention of the kind sdpa: taking eager" in caplog.text
    assert build_policy(str(folder("qwen2"))).causal_lm.config._attn_implementation == "sdpa"
    for name in ("flash_attention_2", "frobnicate"):  # the one is not installed here, the other does not exist
        with pytest.raises(ValueError, match=f"model.attn_implementation {name}: ") as error:
            build_policy(str(gpt_oss), attn_implementation=name)
        assert "\n" not in str(error.value)


def test_adapters_leave_the_experts_alone(folder):
    policy = build_policy(str(folder("qwen3_moe")), lora=LoRA(r=4))
    adapted = {name.split(".lora_")[0].split(".")[-1] for name, _ in policy.named_parameters() if ".lora_" in name}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert any("experts.gate_up_proj" in name for name, _ in policy.named_parameters())


@pytest.mark.parametrize("experiment", ["srml", "grpo"])
@pytest.mark.parametrize("kind", ["qwen3_5_text", "gemma2"])
def test_the_command_trains_and_exports_and_says_how_rows_are_made(
    folder, kind, experiment, tmp_path, base_args, capsys
):
    options = {
        "model.init_args.init_from": folder(kind),
        "trainer.max_steps": 2,
        "trainer.limit_val_batches": 1,
        "data.init_args.limit_val": 1,
    }
    if experiment == "grpo":
        options |= {"model.init_args.sampling.group_size": 2, "data.init_args.prompts_per_step": 2}
    else:
        options |= {"data.init_args.batch_size": 4}
    main(["fit", "--config", f"configs/{experiment}.yaml", *base_args(tmp_path, **options)])
    printed = capsys.readouterr().out
    [row] = [line for line in printed.splitlines() if line.startswith("  rows  ")]
    if BY_KIND[kind].packed:
        assert row.split()[1].startswith("packed")
    else:
        assert "one document per row, because in one row a document's tokens move" in row
    assert list(tmp_path.glob("*-fit-0/hf/model.safetensors"))
    if experiment == "srml" and not BY_KIND[kind].packed:
        with pytest.raises(SystemExit, match=r"data.packing is on, but .*model_type qwen3_5_text.* does not keep"):
            main(
                [
                    "fit",
                    "--config",
                    f"configs/{experiment}.yaml",
                    *base_args(tmp_path, **options | {"data.init_args.packing": "on"}),
                ]
            )


@pytest.mark.parametrize("kind", ["qwen2", "gemma2", "llama4_text", "gpt_oss", "gpt2", "lfm2"])
def test_what_is_known_without_weights_is_what_the_probe_finds(folder, kind):
    saved = str(folder(kind))
    leak, tried = (ask(build_policy(saved, empty=True)) for ask in (known_leak, may_attend_by_document))
    policy = build_policy(saved)
    found = probe(policy)
    assert not leak or leak == found
    assert tried or not policy.by_document
    assert tried == (kind in ("qwen2", "gemma2", "gpt2")) and bool(leak) == (kind == "llama4_text")


def test_rounding_is_a_share_of_the_spread_of_scores():
    # The deviation of 0, 4, 8 is 4; bfloat16 has 7 bits after the point and float32 23, float64 counts as that.
    scores = torch.tensor([0.0, 4.0, 8.0])
    assert rounding(scores, torch.bfloat16) == pytest.approx(4 * 2**-3.5)
    assert rounding(scores, torch.float64) == rounding(scores, torch.float32) == pytest.approx(4 * 2**-11.5)
    assert rounding(torch.ones(3), torch.bfloat16) == pytest.approx(0.01 * 2**-3.5)

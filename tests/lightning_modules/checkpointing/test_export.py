"""What a run is told before its first step about the export at its end, and what the exported folder says."""

import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from datamodules.chat.tokenizer import load_tokenizer
from lightning_modules import SRMLModule
from lightning_modules.checkpointing import export, exported_weights
from lightning_modules.checkpointing.export import export_hf, form_of, rehearse_export
from lightning_modules.cli import main
from lightning_modules.policy import model
from lightning_modules.policy.lora import LoRA
from lightning_modules.policy.model import build_policy

SRML = ["fit", "--config", "configs/srml.yaml"]
SHORT = {"trainer.max_steps": 1, "trainer.limit_val_batches": 0, "last_checkpoint.every_n_train_steps": 1}


@pytest.fixture
def base_model(tiny_model_dir, tmp_path):
    """The tiny model as a base model ships: EOS is not what ends a turn, and it samples without saying so."""
    folder = tmp_path / "base"
    shutil.copytree(tiny_model_dir, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.chat_template = tokenizer.chat_template.replace("assistant\n", "assistant\n<think>\n")
    tokenizer.save_pretrained(folder)
    for name, change in (("config", {}), ("generation_config", {"temperature": 0.6, "top_p": 0.9})):
        file = folder / f"{name}.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": 0} | change))
    return folder


def test_a_base_model_is_trained_and_exported_with_the_end_and_the_prompt_it_was_taught(
    base_model, base_args, tmp_path, monkeypatch
):
    given = {file.name: file.read_bytes() for file in base_model.glob("*.json")}
    main(SRML + base_args(tmp_path / "runs", **SHORT | {"model.init_args.init_from": base_model}))
    run = tmp_path / "runs" / "srml-fit-0"
    monkeypatch.chdir(run / "checkpoints")
    main(["export", "--ckpt_path", "last-000001.ckpt"])  # its run is found from where it lies, too
    for hf in (run / "hf", run / "hf-last-000001"):
        says = {name: json.loads((hf / f"{name}.json").read_text()) for name in ("config", "generation_config")}
        assert says["generation_config"]["eos_token_id"] == [2, 0]  # <|im_end|>, then the base model's own
        assert says["generation_config"]["do_sample"] is True and says["generation_config"]["temperature"] == 0.6
        assert says["config"]["eos_token_id"] == 2 and says["config"]["architectures"] == ["Qwen2ForCausalLM"]
        tokenizer = AutoTokenizer.from_pretrained(hf)
        assert tokenizer.eos_token_id == 2
        chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
        prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        assert prompt.endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert {file.name: file.read_bytes() for file in base_model.glob("*.json")} == given


def test_training_stops_at_all_that_the_exported_model_names(base_model):
    module = SRMLModule(init_from=str(base_model))
    module.configure_model()
    assert module.stop_ids == [2, 0]


def test_the_live_model_keeps_its_configs(base_model, tmp_path):
    policy = build_policy(str(base_model))
    export_hf(policy, AutoTokenizer.from_pretrained(base_model), tmp_path / "hf")
    assert policy.causal_lm.config.eos_token_id == policy.causal_lm.generation_config.eos_token_id == 0


def test_code_that_a_model_was_published_with_is_not_named_by_its_export(base_model, tmp_path):
    code = {"config": {"AutoConfig": "own.Config"}, "tokenizer_config": {"AutoTokenizer": ["own.Tokenizer", None]}}
    for name, auto_map in code.items():
        file = base_model / f"{name}.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"auto_map": auto_map}))
    export_hf(build_policy(str(base_model)), load_tokenizer(str(base_model)), tmp_path / "hf")
    for name in code:
        assert "auto_map" not in json.loads((tmp_path / "hf" / f"{name}.json").read_text())
    AutoConfig.from_pretrained(tmp_path / "hf", trust_remote_code=True)  # as vLLM and lm-eval may be asked to


def load_no_values(init_from, empty, *args, load_weights=model.load_weights, **options):
    assert empty, "values are loaded"
    return load_weights(init_from, empty, *args, **options)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize(
    ("target", "words"), [("embed_tokens", "model.embed_tokens is not a linear layer"), ("lm_head", "adapter")]
)
def test_adapters_that_cannot_be_exported_are_refused_before_the_model_loads(
    base_args, tmp_path, monkeypatch, target, words
):
    monkeypatch.setattr(model, "load_weights", load_no_values)
    with pytest.raises(SystemExit) as exit_:
        main(SRML + base_args(tmp_path, **SHORT | {"model.init_args.lora.target_modules": f"[q_proj,{target}]"}))
    assert exit_.value.code.startswith("error: ") and words in exit_.value.code and "\n" not in exit_.value.code


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("all-linear", ""),
        # As peft reads it.
        (["gate_proj", "up_proj"], "model.layers.0.mlp.experts is not a linear layer (Qwen3MoeExperts)"),
        (["nothing"], "Target modules {'nothing'} not found"),
        (["q_proj", "o_proj"], ""),
    ],
)
def test_adapters_of_a_mixture_of_experts_stay_off_the_experts(tiny_tokenizer, tmp_path, target, words):
    config = AutoConfig.for_model(
        "qwen3_moe",
        vocab_size=len(tiny_tokenizer),
        hidden_size=16,
        intermediate_size=32,
        moe_intermediate_size=16,
        num_experts=4,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
    )
    config.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=re.escape(f"target_modules: {words}")) if words else nullcontext():
        rehearse_export(str(tmp_path), LoRA(r=2, target_modules=target))


def test_an_attention_that_this_machine_lacks_is_no_reason_to_refuse(tiny_tokenizer, tmp_path):
    sizes = {"d_model": 32, "n_heads": 2, "n_layers": 1, "max_seq_len": 64}
    AutoConfig.for_model("mpt", vocab_size=len(tiny_tokenizer), **sizes).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    rehearse_export(str(tmp_path))  # MPT has none but its own


def test_what_the_export_cannot_write_is_refused_before_the_model_loads(base_args, tmp_path, monkeypatch):
    def refuse(*_):
        raise ValueError("this template\ncannot be saved")

    monkeypatch.setattr(model, "load_weights", load_no_values)
    monkeypatch.setattr(export, "served_tokenizer", refuse)
    with pytest.raises(SystemExit) as exit_:
        main(SRML + base_args(tmp_path, **SHORT))
    assert "could be trained and not exported: this template cannot be saved" in exit_.value.code


def test_a_place_that_cannot_be_written_to_is_found_out_at_the_start(tiny_model_dir, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"default_root_dir: the run could not be exported to .*file/version_0"):
        rehearse_export(str(tiny_model_dir), folder=tmp_path / "file" / "version_0")
    rehearse_export(str(tiny_model_dir), folder=tmp_path / "version_0")
    assert list((tmp_path / "version_0").iterdir()) == []


def test_the_rehearsal_holds_merged_names_and_shapes_against_the_models(tiny_model_dir, monkeypatch):
    state, real = torch.random.get_rng_state(), export.merged_weights
    rehearse_export(str(tiny_model_dir))
    rehearse_export(str(tiny_model_dir), LoRA(r=4))
    assert torch.equal(torch.random.get_rng_state(), state)  # a run draws what it would have drawn
    for change, words in [
        (lambda name, w: (name, w.T), r"would be \(64, 32\) and must be \(32, 64\)"),
        (lambda name, w: (f"base_layer.{name}", w), "would be absent and must be"),
    ]:
        monkeypatch.setattr(
            export,
            "merged_weights",
            lambda policy, change=change: (change(n, w) if "0.mlp.down_proj" in n else (n, w) for n, w in real(policy)),
        )
        with pytest.raises(ValueError, match=f"model.layers.0.mlp.down_proj.weight {words}"):
            rehearse_export(str(tiny_model_dir), LoRA(r=4))


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
def test_adapters_of_gpt2_whose_matrices_lie_the_other_way_are_merged(tiny_tokenizer, tmp_path):
    config = GPT2Config(
        vocab_size=len(tiny_tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=64, bos_token_id=None
    )
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    tiny_tokenizer.save_pretrained(tmp_path / "gpt2")
    lora = LoRA(r=2, target_modules=["c_attn", "c_proj"])  # [16, 48], and [16, 16], where shapes tell nothing
    rehearse_export(str(tmp_path / "gpt2"), lora)
    policy = build_policy(str(tmp_path / "gpt2"), lora, dtype=torch.float64).eval()
    for name, parameter in policy.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(0))
    export_hf(policy, tiny_tokenizer, tmp_path / "hf")
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float64)(ids).logits
        torch.testing.assert_close(merged, policy.causal_lm(ids).logits, rtol=0, atol=1e-10)


def test_an_export_takes_the_place_of_nothing_but_an_export(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    export.check_replaceable(tmp_path / "new", "hub/model")
    export.check_replaceable(tmp_path, "hub/model")
    (tmp_path / "notes.txt").touch()
    for folder in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(ValueError, match=f"--output_dir {folder} holds notes.txt and no exported model"):
            export.check_replaceable(folder, "hub/model")
    (tmp_path / "config.json").touch()
    export.check_replaceable(tmp_path, "hub/model")
    with pytest.raises(ValueError, match=f"--output_dir {tmp_path} is the model that the run started from"):
        export.check_replaceable(tmp_path, str(tmp_path / "." / "new" / ".."))
    with pytest.raises(ValueError, match="is the model that the run started from"):
        export.check_replaceable(tmp_path, "~")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").touch()
    with pytest.raises(ValueError, match=f"--output_dir {tmp_path / 'hf'} is the model that the run started from"):
        export.check_replaceable(tmp_path / "hf", str(tmp_path))  # a run


@pytest.mark.parametrize("error", [SafetensorError("I/O error: No space left on device"), OSError("no room")])
def test_a_folder_that_the_export_does_not_fit_into_is_named(tiny_model_dir, tmp_path, monkeypatch, error):
    policy = build_policy(str(tiny_model_dir))

    def full(*_, **__):
        raise error

    monkeypatch.setattr(exported_weights, "save_file", full)
    with pytest.raises(OSError, match=rf"the export to {tmp_path / 'hf'} cannot be written: {error}"):
        export_hf(policy, AutoTokenizer.from_pretrained(tiny_model_dir), tmp_path / "hf")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", [3, [1], {"x": 1}, {"answer_form": "verse"}])
def test_a_form_that_is_none_is_blamed_on_its_checkpoint(tmp_path, form):
    with pytest.raises(ValueError, match=f"--ckpt_path {tmp_path} is damaged"):
        form_of({"form": form}, tmp_path)
    assert form_of({}, tmp_path) is None and form_of({"form": {"think": False}}, tmp_path).think is False


def test_exports_into_one_folder_at_once_leave_a_whole_one(tiny_model_dir, tmp_path):
    policy, tokenizer = build_policy(str(tiny_model_dir)), AutoTokenizer.from_pretrained(tiny_model_dir)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: export_hf(policy, tokenizer, tmp_path / "hf"), range(8)))
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").state_dict()
    torch.testing.assert_close(exported, policy.causal_lm.state_dict(), rtol=0, atol=0)

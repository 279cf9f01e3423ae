"""Folders whose weights are not what their config.json says: none is completed, each is refused in one sentence."""

import json
import shutil

import pytest
import torch
import transformers
from families import EXPERTS, FAMILIES, Family, like_llama
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.utils import hub as transformers_hub

from lightning_modules.policy import weight_files
from lightning_modules.policy.lora import LoRA
from lightning_modules.policy.model import build_policy
from lightning_modules.policy.probe import probe, probe_as_loaded
from lightning_modules.policy.weight_checks import check_kinds, check_ties
from lightning_modules.policy.weight_files import exact_dtype
from lightning_modules.policy.weights import check_model, load_weights

NORM, Q, EXPERT = "model.norm.weight", "model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.experts.2."


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tiny_tokenizer):
    llama, experts = like_llama("llama"), like_llama("qwen3_moe", **EXPERTS)
    return {f.kind: f.save(tmp_path_factory.mktemp(f.kind), tiny_tokenizer) for f in (llama, experts)}


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of a folder whose weights, or config, a function has changed; in as many files as it returns dicts."""

    def make(change=lambda weights: None, kind="llama", **config):
        place = shutil.copytree(saved[kind], tmp_path / "model")
        weights = load_file(place / "model.safetensors")
        change(weights)
        save_file(weights, place / "model.safetensors", {"format": "pt"})
        path = place / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
        return place

    return make


def shards(place):
    """The same weights in two files."""
    weights = load_file(place / "model.safetensors")
    (place / "model.safetensors").unlink()
    homes = {name: f"{'ab'[i % 2]}.safetensors" for i, name in enumerate(sorted(weights))}
    for file in set(homes.values()):
        save_file({n: w for n, w in weights.items() if homes[n] == file}, place / file, {"format": "pt"})
    (place / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": homes}))
    return place


def refusal(place, error=ValueError, early=True):
    """The sentence with which a folder is refused: where no weight needs to be read, before anything else is done."""
    with pytest.raises(error) as raised:
        build_policy(str(place))
    words = str(raised.value)
    if early:
        with pytest.raises(error) as raised:
            check_model(str(place))
        assert str(raised.value) == words
    else:
        check_model(str(place))
    assert words.startswith((f"init_from: {place}", f"init_from: the weights of {place} do not fit its config.json"))
    assert "\n" not in words and len(words) < 900
    return words


def drop_half(weights):
    for name in sorted(weights)[::2]:
        del weights[name]


def of_layer_2(weights):
    weights["model.layers.2.input_layernorm.weight"] = torch.ones(32)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        # 2 layers of 9 weights, embedding, norm and head: 21, and every other one of the sorted names is gone
        (drop_half, "11 missing (lm_head.weight, model.layers.0.input_layernorm.weight, "),
        (lambda w: w.pop("lm_head.weight"), "1 missing (lm_head.weight);"),  # it is not tied
        (of_layer_2, "1 not of this model (model.layers.2.input_layernorm.weight);"),
        (lambda w: w.update({Q.replace("weight", "bias"): torch.ones(32)}), "1 not of this model (model.layers.0.self"),
        (lambda w: w.update({NORM: torch.ones(31)}), f"1 of another shape ({NORM} is [31] and must be [32]);"),
        (lambda w: [w.pop(n) for n in list(w)] and w.update(h=torch.ones(2)), "21 missing (lm_head.weight, "),
    ],
    ids=["half", "head", "layer too many", "bias too many", "shape", "another model"],
)
def test_weights_that_do_not_fit_are_named(folder, change, words, capfd, caplog):
    assert words in refusal(folder(change))
    assert "LOAD REPORT" not in capfd.readouterr().err + caplog.text  # the sentence says it


def test_weights_that_one_is_made_of_are_missed_too(folder):
    place = folder(lambda w: w.pop(EXPERT + "down_proj.weight"), "qwen3_moe")
    assert "model.layers.1.mlp.experts.down_proj" in refusal(place)


def test_what_whole_checkpoints_hold_beside_a_language_model_is_left(folder):
    beside = ["vision_tower.blocks.0.weight", "mtp.0.weight", "v_head.summary.weight"]
    beside += ["model.layers.0.self_attn.rotary_emb.inv_freq"]
    place = folder(lambda w: w.update({name: torch.ones(2) for name in beside}))
    assert torch.equal(build_policy(str(place)).causal_lm.model.norm.weight, torch.ones(32))


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_weight_that_is_not_finite_is_blamed_on_its_file(folder, value):
    place = shards(folder(lambda w: w[Q].view(-1)[5:6].fill_(float(value))))
    file = json.loads((place / "model.safetensors.index.json").read_text())["weight_map"][Q]
    assert f"init_from: {place / file} holds {Q}, in which not all values are finite" in refusal(place, early=False)


def test_a_weight_of_many_is_blamed_by_its_name_in_the_file(folder):
    place = folder(lambda w: w[EXPERT + "up_proj.weight"].fill_(float("nan")), "qwen3_moe")
    assert f"holds {EXPERT}up_proj.weight, in which" in refusal(place, early=False)


def test_finite_weights_of_any_size_are_taken(folder):
    largest = torch.finfo(torch.float32).max  # the sum of two is infinite
    place = folder(lambda w: w[Q].fill_(largest))
    assert load_weights(str(place), False, attn_implementation=None).get_parameter(Q).min() == largest


@pytest.mark.parametrize(("kind", "dtype"), [("gemma3_text", torch.bfloat16), ("llama", torch.float32)])
def test_weights_left_in_their_files_take_no_memory_and_are_the_same(tmp_path, tiny_tokenizer, kind, dtype):
    family = next(family for family in FAMILIES if family.kind == kind)
    place = family.save(tmp_path / "whole", tiny_tokenizer)
    AutoModelForCausalLM.from_pretrained(place, dtype=dtype).save_pretrained(tmp_path / "saved")
    whole, left = (build_policy(str(tmp_path / "saved"), in_files=in_files) for in_files in (False, True))
    ends = [line.split()[0].split("-") for line in open("/proc/self/maps") if str(tmp_path / "saved") in line]
    mapped = [range(int(start, 16), int(end, 16)) for start, end in ends]
    for name, weight in left.named_parameters():
        assert weight.dtype == dtype and any(weight.data_ptr() in part for part in mapped), name
        assert torch.equal(weight.float(), whole.get_parameter(name))
    assert left.causal_lm.config.dtype == torch.float32 and left.training
    buffers = dict(whole.named_buffers())
    assert buffers.keys() == dict(left.named_buffers()).keys()
    for name, buffer in left.named_buffers():
        assert buffer.dtype == buffers[name].dtype and torch.equal(buffer, buffers[name]), name


def test_adapters_on_weights_left_in_their_files_begin_as_on_those_that_are_loaded(tmp_path, tiny_tokenizer):
    place = like_llama("llama").save(tmp_path / "whole", tiny_tokenizer)
    AutoModelForCausalLM.from_pretrained(place, dtype=torch.bfloat16).save_pretrained(tmp_path / "saved")
    whole, left = (
        (torch.manual_seed(3), build_policy(str(tmp_path / "saved"), LoRA(r=4), in_files=in_files))[1]
        for in_files in (False, True)
    )
    loaded = dict(whole.named_parameters())
    assert loaded.keys() == dict(left.named_parameters()).keys()
    for name, weight in left.named_parameters():
        assert weight.dtype == (torch.float32 if ".lora_" in name else torch.bfloat16), name
        assert weight.requires_grad == loaded[name].requires_grad and torch.equal(weight.float(), loaded[name])
    assert any(not torch.equal(w, w.bfloat16().float()) for name, w in loaded.items() if ".lora_A." in name)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Puts a folder into the cache of a hub that is not asked; gives its id, its snapshot and the files looked up."""
    asked = []

    def looked_up(name, find):
        def recorded(*args, **options):
            asked.extend(options.get("allow_patterns", args[1:2]))
            return find(*args, **options)

        monkeypatch.setattr(transformers_hub, name, recorded)

    looked_up("hf_hub_download", transformers_hub.hf_hub_download)
    looked_up("snapshot_download", transformers_hub.snapshot_download)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def cached(place):
        entry, commit = tmp_path / "hub" / "models--some--model", "0123456789abcdef0123456789abcdef01234567"
        for part in ("refs", "snapshots"):
            (entry / part).mkdir(parents=True)
        (entry / "refs" / "main").write_text(commit)
        return "some/model", place.rename(entry / "snapshots" / commit), asked

    return cached


ONE, SHARDS = {"model.safetensors"}, {"model.safetensors.index.json", "a.safetensors", "b.safetensors"}


@pytest.mark.parametrize(("split", "files"), [(lambda place: place, ONE), (shards, ONE | SHARDS)], ids=["1", "2"])
def test_weights_of_a_hub_are_left_in_the_files_that_transformers_takes(folder, hub, split, files):
    place = split(folder(lambda weights: weights.update({n: w.bfloat16() for n, w in weights.items()})))
    name, _, asked = hub(place)
    model = build_policy(name, in_files=True).causal_lm
    assert {file for file in asked if "safetensors" in file} == files  # and of no other format
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16} and model.config.dtype == torch.float32
    assert model.name_or_path == name
    assert {weight.dtype for weight in build_policy(name).parameters()} == {torch.float32}


def test_a_file_of_a_hub_is_blamed_for_what_it_holds(folder, hub):
    name, snapshot, _ = hub(folder(lambda w: w[Q].view(-1)[5:6].fill_(float("nan"))))
    with pytest.raises(ValueError, match=f"{snapshot / 'model.safetensors'} holds {Q}, in which not all values are"):
        load_weights(name, False, attn_implementation=None)


@pytest.mark.parametrize("kind", ["minimax", "xglm", "qwen2"])
def test_a_model_is_probed_on_weights_of_its_files_or_as_it_computes(tmp_path, tiny_tokenizer, kind):
    family = next(family for family in FAMILIES if family.kind == kind)
    place = family.save(tmp_path / "whole", tiny_tokenizer)
    AutoModelForCausalLM.from_pretrained(place, dtype=torch.bfloat16).save_pretrained(tmp_path / "saved")
    whole, left = (build_policy(str(tmp_path / "saved"), in_files=in_files) for in_files in (False, True))
    assert bool(probe_as_loaded(left)) == bool(probe(whole)) == (not family.packed)
    assert {weight.dtype for weight in left.parameters()} == {torch.bfloat16 if kind == "qwen2" else torch.float32}


def test_weights_of_several_dtypes_or_finer_ones_are_loaded(folder):
    half = folder(lambda w: w.update({NORM: w[NORM].bfloat16()}))
    assert exact_dtype(str(half), torch.float32) == torch.float32
    every = half.with_name("every")
    every.mkdir()
    save_file({name: torch.ones(2) for name in "ab"}, every / "model.safetensors", {"format": "pt"})
    assert [exact_dtype(str(every), dtype) for dtype in (torch.float64, torch.bfloat16)] == [
        torch.float32,
        torch.bfloat16,  # float32 is finer
    ]


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "error", "words"),
    [
        (lambda place: cut(place / "b.safetensors"), ValueError, "b.safetensors is damaged (Error while deserializing"),
        (lambda place: (place / "a.safetensors").write_bytes(b""), ValueError, "a.safetensors is damaged"),
        (
            lambda place: (place / "a.safetensors").unlink(),
            FileNotFoundError,
            "lacks 1 of the 2 files that its model.saf",
        ),
        (lambda place: [(place / f"{n}.safetensors").unlink() for n in "ab"], FileNotFoundError, "(a.safetensors, …)"),
        (lambda place: cut(place / "model.safetensors.index.json"), ValueError, "index.json is damaged"),
        (lambda place: (place / "model.safetensors.index.json").write_text("[]"), ValueError, "index.json is damaged"),
        (lambda place: (place / "adapter_config.json").write_text("{}"), ValueError, "holds an adapter"),
    ],
    ids=["cut", "empty", "missing", "all missing", "cut index", "foreign index", "adapter"],
)
def test_damaged_files_are_named(folder, damage, error, words):
    place = shards(folder())
    assert torch.equal(build_policy(str(place)).causal_lm.model.norm.weight, torch.ones(32))  # whole, it is taken
    damage(place)
    assert words in refusal(place, error)


@pytest.mark.parametrize(
    ("left", "words"),
    [
        ("pytorch_model.bin", "holds no safetensors but pickles (pytorch_model.bin), which are not read: load the"),
        ("model.Q4_K_M.gguf", "holds no safetensors but model.Q4_K_M.gguf, which is not read"),
        ("onnx/model.onnx", "holds no safetensors but onnx/model.onnx, which is not read"),
        ("openvino_model.bin", "holds no safetensors but openvino_model.bin, which is not read"),
        ("training_args.bin", "holds no safetensors but training_args.bin, which is not read"),
        ("pytorch_model_fsdp_0/__0_0.distcp", "but pytorch_model_fsdp_0/__0_0.distcp, which is not read"),
        ("global_step9/mp_rank_00_model_states.pt", "but global_step9/mp_rank_00_model_states.pt, which is not read"),
        (".cache/huggingface/download/a.incomplete", "for its download was cut off (.cache/huggingface/download/a.inc"),
        ("checkpoint-9/model.safetensors", "a config.json and no weights: give one of the folders in it, as {}/checkp"),
        ("adapter_model.safetensors", "holds an adapter (adapter_model.safetensors), and the weights it sits on are"),
    ],
)
def test_random_weights_do_not_stand_in_for_those_of_another_format(folder, left, words):
    place = folder()
    (place / "model.safetensors").unlink()
    for name in ("README.md", "vocab.txt", "notes/run.json"):
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text("{}")
    check_model(str(place))  # a config.json and no weights: random ones are meant
    file = place / left
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("x")
    (file.parent / "config.json").write_text((place / "config.json").read_text())
    assert words.format(place) in refusal(place)


@pytest.mark.parametrize("beside", ["config.yaml", "checkpoints"])
def test_the_export_of_a_run_that_has_lost_its_weights_is_not_taken_for_a_random_model(folder, tmp_path, beside):
    run = tmp_path / "run"
    run.mkdir()
    place = folder().rename(run / "hf")
    (place / "model.safetensors").unlink()
    check_model(str(run))  # a folder by that name may be anybody's
    (run / beside).mkdir()
    assert f"funreason export --ckpt_path {run} --output_dir {place}" in refusal(place, FileNotFoundError)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("consolidated.safetensors", "such files have Mistral's own names for the weights"),
        ("model-00001-of-00002.safetensors", "get the index again"),
        ("weights.safetensors", "if that is the whole model, name it model.safetensors"),
    ],
)
def test_weights_by_a_name_that_no_model_is_found_by_are_told_what_they_may_be(folder, name, words):
    place = folder()
    (place / "model.safetensors").rename(place / name)
    said = refusal(place)
    assert f"holds {name}, and neither a model.safetensors nor a model.safetensors.index.json: {words}" in said


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"])
def test_an_adapter_beside_whole_weights_is_not_passed_over(folder, name):
    place = folder()
    (place / name).write_text("{}")
    assert f"holds an adapter ({name}) beside the weights of a model: merge it into them" in refusal(place)


def test_files_that_are_there_in_name_alone_are_told_apart(folder, monkeypatch):
    place = folder()
    file = place / "model.safetensors"
    with monkeypatch.context() as patch:  # root may read anything
        patch.setattr(weight_files.os, "access", lambda path, mode: path != file)
        assert "model.safetensors must not be read by this user" in refusal(place, PermissionError)
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n")
    assert "model.safetensors is a pointer of Git LFS and no weights: fetch them by git lfs pull" in refusal(place)
    file.unlink()
    file.symlink_to(place / "gone")
    assert "model.safetensors is a link to a file that is not there" in refusal(place, FileNotFoundError)


def own_head(weights):
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"] + 1


def test_a_head_of_its_own_under_a_config_that_ties_it_is_refused(folder):
    words = "holds a lm_head.weight that is not model.embed_tokens.weight, and its config.json says that they are one"
    place = folder(own_head, tie_word_embeddings=True)
    assert words in refusal(place)
    with pytest.raises(ValueError, match=r"holds a lm_head\.weight that is not"):
        check_ties("hub/id", AutoModelForCausalLM.from_pretrained(place))


@pytest.mark.parametrize("both", [True, False])
def test_a_tied_head_may_be_in_the_files_or_not(folder, both):
    def tied(weights):
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
        if not both:
            del weights["lm_head.weight"]

    place = folder(tied, tie_word_embeddings=True)
    check_model(str(place))
    model = build_policy(str(place)).causal_lm
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize(
    ("family", "sign"),
    [
        (like_llama("llama", is_causal=False), "is_causal False"),
        (like_llama("gemma3_text", use_bidirectional_attention=True), "use_bidirectional_attention True"),
        (like_llama("bert"), "is_decoder False"),
        (Family("xlm", False, {"emb_dim": 32, "n_layers": 2, "n_heads": 4}), "causal False"),
        (Family("xlnet", False, {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64}), "attn_type bi"),
    ],
    ids=lambda value: getattr(value, "kind", None),
)
def test_encoders_are_refused_by_their_config(tmp_path, tiny_tokenizer, family, sign):
    place = family.save(tmp_path / "model", tiny_tokenizer)
    assert f"is no causal language model, for each of its tokens sees those after it ({sign} in its" in refusal(place)


@pytest.mark.parametrize(("kind", "place"), [("bert", "cls.predictions"), ("roberta", "lm_head")])
def test_layers_between_decoder_and_logits_are_refused_by_their_config(tmp_path, tiny_tokenizer, kind, place):
    folder = like_llama(kind, is_decoder=True).save(tmp_path / "model", tiny_tokenizer)
    assert f"between its decoder and its logits are further layers ({place} of " in refusal(folder)


@pytest.mark.parametrize(("kind", "config"), [("bert-generation", {"is_decoder": True}), ("mbart", {"d_model": 32})])
def test_decoders_of_such_families_are_not(tmp_path, tiny_tokenizer, kind, config):
    check_model(str(like_llama(kind, **config).save(tmp_path / "model", tiny_tokenizer)))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("T5ForConditionalGeneration", "goes on from what an encoder reads (is_encoder_decoder true in its"),
        ("BartForConditionalGeneration", "goes on from what an encoder reads (is_encoder_decoder true in its"),
        ("WhisperForConditionalGeneration", "goes on from what an encoder reads (is_encoder_decoder true in its"),
        ("DistilBertForMaskedLM", "transformers has none for its DistilBertConfig; give a model that writes text"),
    ],
)
def test_models_without_a_decoder_of_their_own_are_refused_by_their_config(tmp_path, kind, words):
    getattr(transformers, kind).config_class().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").touch()  # which is not read
    said = refusal(tmp_path)
    assert f"init_from: {tmp_path} is no causal language model" in said and words in said


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            {"quantization_config": {"quant_method": "gptq", "bits": 4}},
            "quantized weights (quantization_config gptq in its config.json)",
        ),
        ({"quantization_config": {}}, "(quantization_config None in its"),
        ({"quantization_config": "int4"}, "(quantization_config 'int4' in its"),
        ({"hidden_size": "wide"}, "Validation error for field 'hidden_size'"),
        ({"num_attention_heads": 0, "head_dim": None}, "what its family does not expect (ZeroDivisionError"),
        ({"hidden_act": "nope"}, "does not expect (KeyError: 'nope')"),
        ({"pad_token_id": 10**9}, "does not expect (AssertionError: Padding_idx must be within"),
    ],
    ids=str,
)
def test_configs_that_cannot_be_are_one_sentence(folder, config, words):
    assert words in refusal(folder(**config))


@pytest.mark.parametrize("kernel", ["eager", "flash_attention_2"])  # which needs a package
def test_an_attention_kernel_that_a_config_holds_takes_no_part(folder, kernel):
    place = str(folder(_attn_implementation=kernel))
    check_model(place)
    assert build_policy(place).causal_lm.config._attn_implementation == "sdpa"
    assert build_policy(place, attn_implementation="eager").causal_lm.config._attn_implementation == "eager"


def test_weights_left_quantized_are_refused(folder):
    model = load_weights(str(folder()), False, attn_implementation=None)
    model.model.norm.weight = torch.nn.Parameter(torch.ones(32, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"holds quantized weights \(model.norm.weight is torch.int8\)"):
        check_kinds("folder", model)


@pytest.mark.parametrize("kind", [torch.int64, torch.uint8, torch.bool])
def test_weights_that_loading_would_turn_into_floats_are_refused(folder, kind):
    place = folder()
    tensors = load_file(place / "model.safetensors")
    tensors["model.norm.weight"] = torch.ones(32, dtype=kind)
    save_file(tensors, place / "model.safetensors", {"format": "pt"})
    assert "holds quantized weights (model.norm.weight is" in refusal(place)


@pytest.mark.parametrize("weights", [True, False])
def test_a_config_of_quantized_weights_is_refused_whatever_is_made_of_it(folder, weights):
    """Without a GPU transformers turns FP8 into floats, and with one it does not."""
    place = folder(quantization_config={"quant_method": "fp8"})
    if not weights:
        (place / "model.safetensors").unlink()
    words = "holds quantized weights (quantization_config fp8 in its config.json), which nothing here can train"
    assert words in refusal(place)
    with pytest.raises(ValueError, match="holds quantized weights"):
        build_policy(str(place), empty=True)


def test_a_quantized_model_of_a_hub_is_refused_by_its_config_alone(folder, hub):
    name, _, asked = hub(folder(quantization_config={"quant_method": "bitsandbytes"}))
    with pytest.raises(ValueError, match=rf"init_from: {name} holds quantized weights \(quantization_config bitsandb"):
        check_model(name)
    assert not any("safetensors" in file for file in asked)


@pytest.mark.parametrize("kind", ["llama", "qwen3_moe"])
def test_checking_a_whole_model_changes_nothing_of_the_run(folder, kind):
    place, state = folder(kind=kind), torch.get_rng_state()
    check_model(str(place))
    assert torch.equal(torch.get_rng_state(), state)

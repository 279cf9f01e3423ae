"""What a setting that there is not may be meant to be: one of another trainer or group, a slip of the pen."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence

from lightning_modules.commands.given import GROUPS, Given
from lightning_modules.commands.options import classes, parameters, subclasses
from lightning_modules.commands.yaml_nodes import entries, part

ELSEWHERE = {
    "data.batch_size": "per_device_train_batch_size train_batch_size micro_batch_size gradient_accumulation_steps",
    "data.path": "dataset datasets dataset_name dataset_path train_file",
    "data.val_path": "eval_dataset val_dataset test_datasets",
    "data.val_fraction": "val_size val_set_size split_dataset_ratio",
    "data.max_length": "max_seq_length max_seq_len cutoff_len sequence_len",
    "data.packing": "sample_packing",
    "data.chat_template": "template",
    "model.init_from": "model_name_or_path base_model model_id model_name",
    "model.learning_rate": "lr",
    "model.schedule": "lr_scheduler_type lr_scheduler",
    "model.warmup_ratio": "warmup_steps",
    "model.betas": "adam_beta1 adam_beta2",
    "model.lora": "use_peft finetuning_type adapter peft_config",
    "model.lora.r": "lora_r lora_rank",
    "model.lora.alpha": "lora_alpha",
    "model.lora.dropout": "lora_dropout",
    "model.lora.target_modules": "lora_target lora_target_modules lora_target_linear",
    "model.generator.max_new_tokens": "max_completion_length max_response_length",
    "model.sampling.group_size": "num_generations num_return_sequences",
    "model.loss.kl_coef": "beta kl_beta init_kl_coef kl_loss_coef",
    "model.loss.clip_low": "epsilon_low cliprange_low clip_ratio_low",
    "model.loss.clip_high": "epsilon_high cliprange_high clip_ratio_high",
    "model.loss.ratio_level": "importance_sampling_level",
    "model.inner_epochs": "num_iterations",
    "model.advantage_scale": "scale_rewards norm_adv_by_std_in_grpo",
    "model.overlong.treatment": "mask_truncated_completions overlong_filter",
    "model.rewards": "reward_funcs reward_weights reward_model",
    "model.generator": "use_vllm vllm_mode",
    "trainer.max_epochs": "num_train_epochs num_epochs total_epochs",
    "trainer.precision": "bf16 fp16 tf32 torch_dtype",
    "trainer.val_check_interval": "eval_steps eval_strategy evals_per_epoch",
    "trainer.default_root_dir": "output_dir",
    "trainer.log_every_n_steps": "logging_steps",
    "trainer.logger": "report_to",
    "trainer.strategy": "deepspeed fsdp fsdp_config",
    "last_checkpoint.every_n_train_steps": "save_steps save_strategy saves_per_epoch",
    "seed_everything": "seed data_seed",
    "ckpt_path": "resume_from_checkpoint",
}
"""Our keys, and what TRL, LLaMA-Factory, axolotl, ms-swift and verl call that, or what it takes the place of."""
THEIRS = {name: key for key, names in ELSEWHERE.items() for name in names.split()}
UNKNOWN = re.compile(r"""(?:Parser key "([\w.]+)":\s)?.*?(?:[Oo]ption '|unrecognized arguments: --)([\w.]+)""", re.S)
ASKS_FOR_CLASSES = re.compile(r'the following arguments are required: \w+\.(model|data)|Parser key "(model|data)"')
"""How it begins what the parser of a command says where no class is named; the parsers of classes ask for settings."""
LIKE = 0.8  # share of its letters that a slip of the pen leaves


def explained(message: str, given: Sequence[Given], roots: Mapping[str, type]) -> str:
    """An error of the parser with what may be meant; of a class that nothing names, how to name one.

    Args:
        message: The error.
        given: The command line.
        roots: The classes of the groups of settings by their names.
    """
    asks = ASKS_FOR_CLASSES.match(message)
    if asks and asks[2] and (file := overlay_alone(given, asks[2])):
        return (
            f"{file} is an overlay, it names no {asks[2]}.class_path: give the experiment that it changes before "
            f"it, as in --config configs/grpo.yaml --config {file}"
        )
    if asks and not any(one.kind(group) for one in given for group in GROUPS):
        return (
            "no experiment is given: name its YAML, as --config configs/finetune.yaml for SRML or "
            "--config configs/rl.yaml for EGPO"
        )
    if asks and asks[1]:
        return (
            f"no class of the {asks[1]} is named: give --{asks[1]} and a class, as --model SRMLModule with --data "
            "XLAMSFTDataModule, or --config and the YAML of an experiment, as configs/finetune.yaml"
        )
    return message + meant(message, roots)


def overlay_alone(given: Sequence[Given], group: str) -> str | None:
    """The YAML that has settings for the model, or the data, before its class is named."""
    first = next((one for one in given if one.kind(group) or entries(part(one.settings, group))), None)
    return first.value if first and not first.kind(group) else None


def meant(message: str, roots: Mapping[str, type]) -> str:
    """A line for the end of an error of the parser, with the key that may be meant; "" where none is like it.

    Args:
        message: The error.
        roots: The classes of the groups of settings by their names.
    """
    if not (found := UNKNOWN.search(message)):
        return ""
    given = ".".join(filter(None, found.groups()))
    name = given.rpartition(".")[2]
    keys, own = dict[str, str](), dict[str, str]()  # by their last part; of several the one that stands first
    for key in keys_of(roots):
        keys.setdefault(key.rpartition(".")[2], key)
        if key.startswith(f"{given.partition('.')[0]}."):
            own.setdefault(key.rpartition(".")[2], key)
    near = [found[word] for found in (own, keys) for word in difflib.get_close_matches(name, found, 1, LIKE)]
    key = THEIRS.get(name) or (near[0] if near else given)
    return f"\n(is --{key} meant?)" if key != given else ""  # which another class has


def keys_of(roots: Mapping[str, type]) -> Iterator[str]:
    """All settings of these groups, whatever class they are chosen to be of; those within others come last."""
    deeper = list[str]()
    for root, kind in roots.items():
        for owner in (kind, *subclasses(kind)):
            for name, annotation in parameters(owner).items():
                yield f"{root}.{name}"
                named = "dict[" in str(annotation)  # a name of the user's stands between
                held = [one for kind in classes(annotation) for one in (kind, *subclasses(kind)) if not named]
                deeper += [f"{root}.{name}.{inner}" for kind in held for inner in parameters(kind)]
    yield from deeper

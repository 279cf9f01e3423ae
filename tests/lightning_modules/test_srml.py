"""SRMLModule against a float64 oracle that sees one document at a time, and the optimizer around it."""

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from training_runs import Steps
from transformers import AutoModelForCausalLM

from datamodules import XLAMSFTDataModule
from datamodules.loading import ResumableLoader, epoch_order
from datamodules.packing import Encoded, collate_packed, idle_batch
from lightning_modules import SRMLModule
from lightning_modules.generators import HFGenerator
from lightning_modules.metrics import SEGMENT_SUMS, segment_metrics
from lightning_modules.objectives import Totals
from lightning_modules.policy.lora import LoRA

# Tokens of prompt, CoT and call; one document has no chain of thought.
SIZES = [(5, 9, 4), (3, 2, 7), (8, 0, 3), (2, 20, 2), (6, 5, 5), (4, 1, 1)]
SPLITS = {1: [[0, 1, 2, 3, 4, 5]], 2: [[0, 3], [1, 2, 4, 5]], 4: [[5], [0, 1], [2, 3], [4]]}


def documents():
    generator = torch.Generator().manual_seed(0)
    docs = []
    for prompt, cot, call in SIZES:
        ids = torch.randint(320, (prompt + cot + call,), generator=generator).tolist()
        docs.append(Encoded(ids, [0] * prompt + [1] * cot + [2] * call))
    return docs


def micro_batches(split):
    """Each micro-batch as up to two packed rows."""
    docs = documents()
    halves = [[rows for rows in (part[::2], part[1::2]) if rows] for part in SPLITS[split]]
    return [collate_packed([docs[i] for row in rows for i in row], relative(rows)) for rows in halves]


def relative(rows):
    numbers = iter(range(99))
    return [[next(numbers) for _ in row] for row in rows]


def fit(module, *batches):
    trainer = Trainer(
        accelerator="cpu", precision="64-true", max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, Steps(*batches))
    return trainer


def gradients_of_a_step(module, batch):
    """Unclipped gradients by name, and what was logged, of one optimizer step."""
    recorded, clip = {}, module.clip_gradients

    def record():
        recorded.update({name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None})
        return clip()

    module.clip_gradients = record
    metrics = fit(module, batch).callback_metrics
    return recorded, {name: float(value) for name, value in metrics.items()}


def of_documents(model):
    """Of each document alone, the losses and the segments of its tokens but the first."""
    nlls, segments = [], []
    for doc in documents():
        ids = torch.tensor([doc.input_ids])
        logprobs = model(ids, use_cache=False).logits[0, :-1].log_softmax(-1)
        nlls.append(-logprobs[torch.arange(len(doc.input_ids) - 1), ids[0, 1:]])
        segments.append(torch.tensor(doc.segments[1:]))
    return nlls, segments


def oracle(folder, alpha, reduction):
    """Loss and gradients in float64 from whole logits of unpadded documents; alpha None is the share of CoT tokens."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    nlls, segments = of_documents(model)
    groups = zip(nlls, segments, strict=True) if reduction == "sample" else [(torch.cat(nlls), torch.cat(segments))]
    losses = []
    for nll, segment in groups:
        cot, call = nll[segment == 1], nll[segment == 2]
        weight = len(cot) / (len(cot) + len(call)) if alpha is None else alpha
        losses.append(weight * cot.mean() + (1 - weight) * call.mean() if len(cot) else call.mean())
    loss = torch.stack(losses).mean()
    parameters = dict(model.named_parameters())
    grads = torch.autograd.grad(loss, [*parameters.values()] + ([alpha] if isinstance(alpha, torch.Tensor) else []))
    return loss.item(), dict(zip(parameters, grads, strict=False)), grads[-1]


@pytest.mark.parametrize(
    ("balance", "reduction"),
    [("fixed", "sample"), ("fixed", "token"), ("learnable", "sample"), ("learnable", "token"), ("sft", "token")],
)
def test_gradient_is_that_of_single_documents_however_the_step_is_split(tiny_model_dir, balance, reduction):
    # 0.5, because its logit is exact in float32
    alpha = torch.tensor(0.5, dtype=torch.float64, requires_grad=True) if balance == "learnable" else 0.5
    loss, expected, d_alpha = oracle(tiny_model_dir, None if balance == "sft" else alpha, reduction)
    for split in SPLITS:
        module = SRMLModule(init_from=str(tiny_model_dir), balance=balance, cot_weight=0.5, reduction=reduction)
        got, metrics = gradients_of_a_step(module, micro_batches(split))
        for name, gradient in expected.items():
            torch.testing.assert_close(got[f"policy.model.{name}"], gradient, rtol=1e-9, atol=1e-12)
        assert metrics["train/loss"] == pytest.approx(loss, rel=1e-6)  # logged in float32
        if balance == "learnable":  # alpha = sigmoid(x), so dL/dx = dL/dalpha * alpha * (1 - alpha)
            assert got["alpha_logit"].item() == pytest.approx(d_alpha.item() * 0.5 * 0.5, rel=1e-9)
            assert metrics["train/weight_cot"] == 0.5


def test_plain_sft_is_the_mean_over_the_tokens_of_the_step(tiny_model_dir):
    module = SRMLModule(init_from=str(tiny_model_dir), balance="sft")
    assert module.reduction == "token" and SRMLModule(init_from="anything").reduction == "sample"
    assert module.target_loss.by_token and not SRMLModule(init_from="anything").target_loss.by_token
    _, metrics = gradients_of_a_step(module, micro_batches(2))
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float64)
    nlls, segments = of_documents(model)
    every = torch.cat(nlls)[torch.cat(segments) > 0]
    assert len(every) == 37 + 22 and metrics["train/loss"] == pytest.approx(every.mean().item(), rel=1e-6)


@pytest.mark.parametrize("split", SPLITS)
def test_losses_of_the_segments_are_means_over_the_documents_that_have_them(tiny_model_dir, split):
    _, metrics = gradients_of_a_step(SRMLModule(init_from=str(tiny_model_dir)), micro_batches(split))
    nlls, segments = of_documents(AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float64))
    for name, segment, count in (("cot", 1, 5), ("call", 2, 6)):  # one of the six documents has no chain of thought
        means = [nll[mine == segment].mean().item() for nll, mine in zip(nlls, segments, strict=True)]
        expected = sum(mean for mean in means if not math.isnan(mean)) / count
        assert metrics[f"train/loss_{name}"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("split", SPLITS)
def test_accuracy_entropy_and_sizes_of_a_step_by_hand(tiny_model_dir, split):
    module = SRMLModule(init_from=str(tiny_model_dir))
    module.speed = lambda start, tokens, samples: {"tokens": tokens, "samples": samples}
    _, metrics = gradients_of_a_step(module, micro_batches(split))
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float64)
    found = {1: [], 2: []}  # whether each token of a segment is the most likely one, and the entropy there
    for doc in documents():
        logprobs = model(torch.tensor([doc.input_ids]), use_cache=False).logits[0, :-1].log_softmax(-1).detach()
        for row, target, segment in zip(logprobs, doc.input_ids[1:], doc.segments[1:], strict=True):
            if segment:
                found[segment].append((int(row.argmax()) == target, -float((row.exp() * row).sum())))
    for name, segment, count in (("cot", 1, 37), ("call", 2, 22)):
        assert len(found[segment]) == count
        accuracy, entropy = (sum(values) / count for values in zip(*found[segment], strict=True))
        assert metrics[f"train/token_acc_{name}"] == pytest.approx(accuracy, rel=1e-6)
        assert metrics[f"train/entropy_{name}"] == pytest.approx(entropy, rel=1e-6)
    # 18 + 12 + 11 + 24 + 16 + 6 tokens of 6 documents; in one micro-batch rows of 18 + 11 + 16 = 45 and of
    # 12 + 24 + 6 = 42, in two of 18 and 24, and of 12 + 16 = 28 and 11 + 6 = 17, in four of 6, of 18 and 12, of 11
    # and 24, and of 16.
    padding = {1: 3, 2: 6 + 11, 4: 6 + 13}[split]
    assert (metrics["tokens"], metrics["samples"]) == (87, 6)
    assert metrics["perf/pad_frac"] == pytest.approx(padding / (87 + padding), rel=1e-6)


def test_metrics_of_a_step_do_not_depend_on_the_split(tiny_model_dir):
    seen = []
    for split in SPLITS:
        _, metrics = gradients_of_a_step(SRMLModule(init_from=str(tiny_model_dir)), micro_batches(split))
        seen.append({k: v for k, v in metrics.items() if k.startswith("train/")})
    assert seen[0] == pytest.approx(seen[1])
    assert seen[0] == pytest.approx(seen[2])
    # CoT: 9 + 2 + 0 + 20 + 5 + 1; call: 4 + 7 + 3 + 2 + 5 + 1
    assert (seen[0]["train/tokens_cot"], seen[0]["train/tokens_call"]) == (37, 22)
    names = ("loss", "grad_norm", "lr", "loss_cot", "loss_call", "token_acc_cot", "entropy_call", "weight_call")
    assert {f"train/{name}" for name in names} <= set(seen[0])


def test_segment_metrics_by_hand():
    sums = dict.fromkeys(SEGMENT_SUMS, 0.0) | {"loss": 2.0, "tokens_call": 4.0, "hits_call": 1.0, "entropy_call": 6.0}
    metrics = segment_metrics(sums | {"tokens": 9.0, "padding": 3.0}, None)
    assert metrics["train/token_acc_call"] == 0.25
    assert metrics["train/entropy_call"] == 1.5
    assert metrics["perf/pad_frac"] == 0.25
    assert (metrics["train/weight_cot"], metrics["train/weight_call"]) == (0.0, 1.0)  # plain SFT, no CoT token
    assert "train/loss_cot" not in metrics  # and no NaN


def test_idle_batch_has_every_parameter_in_its_graph_and_no_gradient(tiny_model_dir):
    module = SRMLModule(init_from=str(tiny_model_dir), balance="learnable")
    module.configure_model()
    loss, parts = module.loss(idle_batch(torch.device("cpu")), Totals(6.0, 37.0, 22.0))
    loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in module.parameters())
    assert not any(value for name, value in parts.items() if name != "padding")


def test_groups_of_the_optimizer(tiny_model_dir):
    module = SRMLModule(
        init_from=str(tiny_model_dir), balance="learnable", weight_decay=0.1, learning_rate=0.01, alpha_lr_mult=10
    )
    module.configure_model()
    matrices, vectors, alpha = module.parameter_groups()
    assert all(p.ndim == 2 for p in matrices["params"]) and matrices["weight_decay"] == 0.1
    assert all(p.ndim == 1 for p in vectors["params"]) and vectors["weight_decay"] == 0.0
    assert alpha["params"] == [module.alpha_logit] and (alpha["weight_decay"], alpha["lr"]) == (0.0, 0.1)
    assert module.alpha_logit.shape == (1,) and module.alpha_logit.dtype == torch.float32
    counted = sum(len(group["params"]) for group in (matrices, vectors, alpha))
    assert counted == len(list(module.parameters()))


def test_all_parameters_are_updated_by_one_kernel(tiny_model_dir):
    """torch fuses AdamW where it is told to; by itself it takes a kernel for each of its operations."""
    module = SRMLModule(init_from=str(tiny_model_dir), balance="learnable")
    module.configure_model()
    module._trainer = SimpleNamespace(estimated_stepping_batches=4, max_epochs=1)
    groups = module.configure_optimizers()["optimizer"].param_groups
    assert [group["fused"] for group in groups] == [True] * 3  # matrices, vectors, alpha


@pytest.mark.parametrize(("schedule", "last"), [("cosine", 1.0), ("constant", 2.0)])
def test_the_optimizer_has_its_settings_and_the_rate_follows_the_schedule(tiny_model_dir, schedule, last):
    options = {"betas": (0.8, 0.95), "epsilon": 1e-5, "learning_rate": 2.0, "warmup_ratio": 0.3, "schedule": schedule}
    module = SRMLModule(init_from=str(tiny_model_dir), **options)
    module.configure_model()
    module._trainer = SimpleNamespace(estimated_stepping_batches=4, max_epochs=1)
    made = module.configure_optimizers()
    assert {(group["betas"], group["eps"]) for group in made["optimizer"].param_groups} == {((0.8, 0.95), 1e-5)}
    rates = []
    for _ in range(4):
        rates.append(made["optimizer"].param_groups[0]["lr"])
        made["optimizer"].step()
        made["lr_scheduler"].step()
    # 0.3 of 4 steps are 1.2, so that 2 warm up: a half, then all of it, from which a cosine has reached half in 1 of 2.
    assert rates == pytest.approx([1.0, 2.0, 2.0, last])


def test_rows_of_another_tokenizer_are_refused(tiny_model_dir, rows_file, tmp_path):
    """From Python the two are named apart; a copy of the model's folder has the same one."""
    other, copy = tmp_path / "other", tmp_path / "copy"
    for folder in (other, copy):
        shutil.copytree(tiny_model_dir, folder)
    file = other / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]  # as long, and another
    file.write_text(json.dumps(tokenizer))
    trainer = Trainer(accelerator="cpu", fast_dev_run=True, enable_progress_bar=False, enable_model_summary=False)
    options = {"path": str(rows_file), "batch_size": 4, "cache_dir": str(tmp_path / "cache")}
    template = copy / "chat_template.jinja"
    template.write_text("{#- of the same text -#}" + template.read_text())
    trainer.fit(SRMLModule(init_from=str(tiny_model_dir)), XLAMSFTDataModule(tokenizer=str(copy), **options))
    with pytest.raises(ValueError, match=f"data.tokenizer {other} is not the tokenizer of model.init_from"):
        trainer.fit(SRMLModule(init_from=str(tiny_model_dir)), XLAMSFTDataModule(tokenizer=str(other), **options))


def test_data_of_ones_own_need_not_say_how_many_rows_a_step_has(tiny_model_dir):
    module = SRMLModule(init_from=str(tiny_model_dir))
    module._trainer, module.packed = SimpleNamespace(datamodule=LightningDataModule()), True
    assert module.settings_table().keys() == {"rows", "loss"}
    module.data.hparams["batch_size"] = 3000
    assert module.settings_table()["batch"] == "3,000 rows over all ranks"


def test_alpha_stays_within_its_bounds(tiny_model_dir):
    # Adam moves alpha's logit by about lr * mult = 4 in the first step: far beyond logit(0.95) = 2.94.
    module = SRMLModule(
        init_from=str(tiny_model_dir), balance="learnable", learning_rate=4e-5, alpha_lr_mult=1e5, warmup_ratio=0.0
    )
    fit(module, micro_batches(1))
    assert module.alpha().item() in (pytest.approx(0.05), pytest.approx(0.95))


def test_configure_model_keeps_weights_it_has(tiny_model_dir):
    module = SRMLModule(init_from=str(tiny_model_dir))
    module.configure_model()
    policy = module.policy
    module.configure_model()
    assert module.policy is policy


def test_gradients_that_are_not_finite_stop_the_run_before_the_step(tiny_model_dir):
    module = SRMLModule(init_from=str(tiny_model_dir))
    module.configure_model()
    with torch.no_grad():
        module.policy.causal_lm.model.norm.weight[0] = math.inf
    with pytest.raises(
        RuntimeError, match=f"gradient norm is nan at step 0: a weight of model.init_from {tiny_model_dir}"
    ):
        fit(module, micro_batches(1))
    assert module.global_step == 0


def test_step_without_supervised_tokens_is_an_error(tiny_model_dir):
    with pytest.raises(ValueError, match="No token of step 0 is supervised"):
        fit(SRMLModule(init_from=str(tiny_model_dir)), [idle_batch(torch.device("cpu"))])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cot_weight": 1.5}, "model.cot_weight"),
        ({"balance": "learnable", "cot_weight": 0.99}, "model.alpha_bounds"),
        ({"balance": "learnable", "alpha_bounds": (0.0, 1.0)}, "model.alpha_bounds"),
        ({"max_grad_norm": 0.0}, "model.max_grad_norm is 0.0; give a number greater than 0"),
        ({"balance": "sft", "reduction": "sample"}, "every token alike, and model.reduction sample every document"),
        ({"balance": "plain"}, "SRMLModule: balance is 'plain'; give fixed, learnable or sft"),
        ({"schedule": "linear"}, "SRMLModule: schedule is 'linear'; give cosine or constant"),
        (
            {"lora": {"r": 4}},
            "SRMLModule: lora is {'r': 4}; give an object of .*policy.lora.LoRA or None",
        ),
        ({"generator": HFGenerator}, "SRMLModule: generator is <class .*HFGenerator'>; give an object of .*Generator"),
        ({"reward": len}, "SRMLModule: reward is <built-in function len>; give an object of .*FunctionCallReward or"),
    ],
)
def test_impossible_weights_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SRMLModule(init_from="anything", **options)


def test_a_run_goes_on_whose_settings_were_paths_and_numbers_of_numpy(tiny_model_dir, rows_file, tmp_path):
    """They are in its checkpoint, of which nothing is read but plain values."""
    files = {"tokenizer": Path(tiny_model_dir), "path": Path(rows_file), "cache_dir": tmp_path / "cache"}

    def fit_to(steps, **options):
        module = SRMLModule(init_from=Path(tiny_model_dir), learning_rate=np.float64(0.5), lora=LoRA(r=np.int64(2)))
        rows = XLAMSFTDataModule(**files, batch_size=np.int64(1), val_fraction=0)
        trainer = Trainer(
            accelerator="cpu", max_steps=steps, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, limit_val_batches=0,
        )  # fmt: skip
        trainer.fit(module, rows, **options)
        return trainer

    fit_to(1).save_checkpoint(tmp_path / "a.ckpt")
    assert fit_to(2, ckpt_path=tmp_path / "a.ckpt").global_step == 2


class Descending(SRMLModule):
    """With an optimizer of its own, without momentum and without a schedule."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameter_groups(), lr=0.5)


class Ungrouped(SRMLModule):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


def test_an_optimizer_of_ones_own_goes_on_if_it_has_the_groups_that_checkpoints_name(
    tiny_model_dir, rows_file, tmp_path
):
    def fit_to(steps, kind, **options):
        rows = XLAMSFTDataModule(tokenizer=str(tiny_model_dir), path=str(rows_file), batch_size=2, val_fraction=0)
        trainer = Trainer(
            accelerator="cpu", max_steps=steps, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, limit_val_batches=0,
        )  # fmt: skip
        trainer.fit(kind(init_from=str(tiny_model_dir)), rows, **options)
        return trainer

    fit_to(1, Descending).save_checkpoint(tmp_path / "a.ckpt")
    assert fit_to(2, Descending, ckpt_path=tmp_path / "a.ckpt").global_step == 2
    with pytest.raises(ValueError, match=r"^Ungrouped.configure_optimizers has other groups than parameter_groups\(\)"):
        fit_to(1, Ungrouped)


def test_overfit_batches_trains_on_the_same_rows_in_each_epoch(tiny_model_dir):
    class Loader(LightningDataModule):
        def train_dataloader(self):
            return ResumableLoader(4, 2, lambda rows: seen.append(rows) or micro_batches(1))

    seen = []
    trainer = Trainer(
        accelerator="cpu", max_epochs=3, overfit_batches=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(SRMLModule(init_from=str(tiny_model_dir)), Loader())
    first = epoch_order(4, 0, 0)[:2]  # of two batches of two rows; the second, and the first of a new order, came next
    assert seen == [first, first, first]

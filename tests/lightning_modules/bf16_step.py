"""Takes two optimizer steps with adapters on bfloat16 weights: python bf16_step.py MODEL FOLDER [DEVICES [STRATEGY]].

Each rank leaves in FOLDER what its tensors are and what it has learnt.
"""

import sys
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer
from training_runs import Steps

from datamodules.packing import Encoded, collate_packed
from lightning_modules import SRMLModule
from lightning_modules.policy.lora import LoRA
from lightning_modules.policy.unshard import named_state, unshard
from lightning_modules.strategies import FSDP2

LENGTH = 40


def batch():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 300, (LENGTH,), generator=generator).tolist()
    return [collate_packed([Encoded(ids, [0] * 10 + [1] * 20 + [2] * 10)], [[0]])]


class Leave(Callback):
    """Writes what a rank holds when training is over, for then it is still in shards."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_end(self, trainer, module):
        """Compare with a whole copy, and write."""
        ids = torch.tensor([range(3, 3 + LENGTH)])
        scored = (ids, torch.arange(LENGTH)[None], ids.roll(-1))
        copy = module.generating_policy()
        module.policy.eval()
        with torch.no_grad():
            logprobs = [policy(*scored).logprobs for policy in (module.policy, copy)]
        states = trainer.optimizers[0].state.values()
        left = {
            "weights": {name: weight.dtype for name, weight in module.named_parameters()},
            "buffers": {name: buffer.clone() for name, buffer in module.policy.named_buffers()},
            "copied": {name: weight.dtype for name, weight in copy.named_parameters()},
            "states": {state[name].dtype for state in states for name in ("exp_avg", "exp_avg_sq")},
            "adapters": {n: unshard(w).clone() for n, w in named_state(module.policy).items() if ".lora_" in n},
            "alpha": module.alpha_logit.detach().clone(),
            "logprobs": logprobs,
        }
        torch.save(left, Path(self.folder) / f"{trainer.global_rank}.pt")


def main(model, folder, devices=1, strategy="auto"):
    """Train."""
    torch.manual_seed(0)
    module = SRMLModule(
        init_from=str(model), lora=LoRA(r=4), balance="learnable", alpha_lr_mult=100.0, learning_rate=1e-3
    )
    Trainer(
        accelerator="cpu", devices=int(devices), strategy=FSDP2() if strategy == "fsdp2" else strategy,
        precision="bf16-true", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[Leave(folder)], use_distributed_sampler=False,
    ).fit(module, Steps(batch(), batch()))  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])

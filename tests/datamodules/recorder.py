"""A module that remembers its batches, and runs of it that save after every step; data as on one of several ranks."""

from types import SimpleNamespace

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class Recorder(LightningModule):
    """Remembers its batches; one optimizer step each."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.batches = []

    def training_step(self, batch, batch_idx):
        self.batches.append(batch)
        self.optimizers().step()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def batches_of_a_run(data, folder, steps, ckpt_path=None, **options):
    """The batches that a trainer takes from a loader or a DataModule."""
    module = Recorder()
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        default_root_dir=folder,
        callbacks=[ModelCheckpoint(dirpath=folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)],
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **options,
    )
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return module.batches


def at_rank(module, rank, ranks):
    """A DataModule that is set up to train on one of several ranks."""
    module.trainer = SimpleNamespace(global_rank=rank, world_size=ranks, log_dir=None, state=SimpleNamespace(fn="fit"))
    module.setup("fit")
    return module

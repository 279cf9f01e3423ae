"""FunctionCallingModule: what the modules that train share."""

from types import SimpleNamespace

import pytest
from lightning.pytorch.trainer.states import TrainerFn

from lightning_modules import GRPOModule, SRMLModule

OF = {SRMLModule: {"optimizer_settings": {}}, GRPOModule: {"optimizer_settings": {}, "rollouts": [None]}}


@pytest.mark.parametrize(("kind", "other"), [(SRMLModule, GRPOModule), (GRPOModule, SRMLModule)])
@pytest.mark.parametrize("trainer", [None, SimpleNamespace(state=SimpleNamespace(fn=TrainerFn.FITTING))])
def test_no_run_goes_on_from_a_checkpoint_of_the_other_kind(kind, other, trainer):
    module = kind(init_from="nowhere")
    module._trainer = trainer
    words = f"The checkpoint is not one of {kind.__name__}: to start from its run, give it to model.init_from."
    with pytest.raises(ValueError, match=f"^{words}$"):
        module.check_checkpoint(OF[other], {})


def test_validating_is_no_time_of_training():
    module = SRMLModule(init_from="nowhere")
    module.throughput.update(0.0, 100, 4)
    module.on_validation_end()
    assert not module.throughput.steps

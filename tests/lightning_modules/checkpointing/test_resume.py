import random

import numpy as np
import torch

from lightning_modules.checkpointing.resume import ExactResume, random_states, set_random_states


def test_random_states_survive_a_checkpoint_loaded_with_weights_only(tmp_path):
    random.gauss(0, 1)  # leaves half a pair in the state, as does numpy's
    np.random.normal()
    torch.save(ExactResume().state_dict(), tmp_path / "states.pt")
    drawn = random.gauss(0, 1), np.random.normal(), np.random.randint(1 << 30), torch.rand(3).tolist()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    (states,) = torch.load(tmp_path / "states.pt", weights_only=True)["ranks"]
    set_random_states(states)
    assert drawn == (random.gauss(0, 1), np.random.normal(), np.random.randint(1 << 30), torch.rand(3).tolist())
    assert set(states) == set(random_states())

"""Batches sampled ahead, by fake servers: of which policy they are, and that a run that was broken off goes on."""

import math
from contextlib import ExitStack
from threading import Event

import pytest
from fake_vllm import FakeVLLM
from training_runs import assert_same, command_on_ranks, metrics, rewards_module, saved_state

from lightning_modules import GRPOModule
from lightning_modules.cli import main
from lightning_modules.generators import Completion, VLLMServerGenerator
from lightning_modules.objectives import ImportanceSampling
from lightning_modules.rollout.ahead import Ahead
from lightning_modules.rollout.dynamic import DynamicSampling
from lightning_modules.rollout.sampling import Sampling

VOWELS = "def vowels(completion, tools, answers):\n    return float(sum(c in 'aeiou' for c in completion))\n"
CONFIG = ["fit", "--config", "configs/grpo.yaml"]
# Three batches of four prompts, each for two optimizer steps; validation after the third one, in the middle of a batch.
RUN = {
    "model.init_args.generator": "lightning_modules.generators.VLLMServerGenerator",
    "model.init_args.sampling.ahead": "true",
    "model.init_args.sampling.group_size": 4,
    "model.init_args.mini_batches": 2,
    "model.init_args.learning_rate": 0.01,
    "model.init_args.rewards": '{"vowels": {"function": "toy_rewards.vowels"}}',
    "model.init_args.reward_timeout": "null",
    "data.init_args.val_path": "null",
    "data.init_args.prompts_per_step": 4,
    "trainer.max_steps": 6,
    "trainer.val_check_interval": 3,
    "last_checkpoint.every_n_train_steps": 50,
}
GROUPS = [[Completion([1, 2], "stop", [-0.5, -1.5])], [Completion([3], "length", [-2.0])]]


@pytest.fixture(scope="module", autouse=True)
def toy(tmp_path_factory):
    with rewards_module(tmp_path_factory.mktemp("toy"), VOWELS):
        yield


@pytest.fixture(scope="module")
def servers():
    with ExitStack() as stack:
        started = [stack.enter_context(FakeVLLM()) for _ in range(2)]
        for server in started:
            server.settings["max_model_len"] = 4096
        yield started


@pytest.fixture(scope="module")
def options(servers):
    return RUN | {"model.init_args.generator.init_args.servers": [server.url for server in servers]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, base_args, options, servers):
    """A run that nothing breaks off, and how many samples it asked for."""
    root = tmp_path_factory.mktemp("whole")
    main(CONFIG + base_args(root, **options))
    asked = [body["sampling_params"]["temperature"] for server in servers for body in server.bodies]
    return root / "egpo-fit-0", sum(temperature > 0 for temperature in asked)


def test_all_batches_but_the_first_are_of_the_policy_before(whole):
    run, samples = whole
    logged = metrics(run, ("sampling/", "val/", "train/grad_norm"))
    assert logged[1, "sampling/logp_diff_max"] <= 1e-4
    for step in (3, 5):  # two updates later
        assert logged[step, "sampling/logp_diff_max"] > 1e-2
        assert logged[step, "sampling/ess"] < 0.999
    assert samples == 3 * 4 * 4  # and none of a fourth batch
    assert (3, "val/completion/mean_length") in logged and (6, "val/completion/mean_length") in logged


@pytest.mark.parametrize("step", [1, 2, 3, 5])
def test_a_run_that_was_broken_off_goes_on_exactly(whole, base_args, options, tmp_path, monkeypatch, step):
    update = GRPOModule.update

    def breaking(module, buffer):
        if module.global_step == step:
            raise KeyboardInterrupt
        return update(module, buffer)

    monkeypatch.setattr(GRPOModule, "update", breaking)
    command = CONFIG + base_args(tmp_path, **options)
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        main(command)
    monkeypatch.undo()
    (state,) = saved_state(tmp_path / "egpo-fit-0", step)["ahead"]
    steps = {int(name.partition("/")[0]) for name in state["groups"]}
    begun = step // 2 * 2  # when the batch under way was sampled
    assert steps == {begun, begun + 2} & {2, 4}
    main([*command, f"--ckpt_path={tmp_path / 'egpo-fit-0'}"])
    run, resumed = whole[0], tmp_path / "egpo-fit-1"
    assert_same(saved_state(resumed, 6)["state_dict"], saved_state(run, 6)["state_dict"])
    expected = metrics(run)
    later = metrics(resumed)
    assert later and all(math.isfinite(value) for value in later.values())
    assert {key: expected[key] for key in later} == later


@pytest.mark.ranks
def test_two_ranks_sample_ahead_what_one_does(whole, base_args, options, tmp_path):
    options = options | {"trainer.devices": 2, "model.init_args.reward_timeout": 60}
    options |= {"trainer.strategy.class_path": "lightning_modules.strategies.FSDP2"}
    done = command_on_ranks(*CONFIG, *base_args(tmp_path, **options))
    assert done.returncode == 0, done.stderr[-4000:]
    one, two = (metrics(run, ("reward/mean", "policy/loss")) for run in (whole[0], tmp_path / "egpo-fit-0"))
    assert one == pytest.approx(two, rel=1e-3, abs=1e-5)


@pytest.mark.ranks
def test_a_rank_without_prompts_in_the_last_batch_of_an_epoch_waits_for_nobody(base_args, options, tmp_path):
    options = options | {"trainer.devices": 2, "model.init_args.reward_timeout": 60, "trainer.max_steps": 4}
    options |= {"trainer.strategy.class_path": "lightning_modules.strategies.FSDP2"}
    options |= {"data.init_args.path": "toolbox:train:5", "data.init_args.val_fraction": 0}  # batches of 4 and of 1
    done = command_on_ranks(*CONFIG, *base_args(tmp_path, **options))
    assert done.returncode == 0, done.stderr[-4000:]
    assert (3, "reward/mean") in metrics(tmp_path / "egpo-fit-0")  # of the batch of one


def test_groups_are_taken_once_they_are_there():
    ahead, ready = Ahead(), Event()
    assert ahead.take(["1/a", "1/b"], 1) is None
    ahead.start(["2/a", "2/b"], lambda: ready.wait(30) and GROUPS)
    ready.set()
    assert ahead.take(["2/a", "2/b"], 1) == GROUPS
    assert ahead.take(["2/a", "2/b"], 1) == GROUPS  # of a step that is taken again
    ahead.start(["3/a"], lambda: GROUPS[:1])
    assert ahead.take(["2/a"], 1) == GROUPS[:1] and ahead.take(["3/a"], 1) is None


def test_a_checkpoint_holds_what_is_being_sampled_and_any_rank_finds_its_own():
    one, two, resumed = Ahead(), Ahead(), Ahead()
    one.start(["2/a"], lambda: GROUPS[:1])
    two.start(["2/b"], lambda: GROUPS[1:])
    states = [one.state_dict(), two.state_dict()]
    assert states[0] == {"groups": {"2/a": [[[1, 2], "stop", [-0.5, -1.5]]]}}
    resumed.load_state_dicts(states)
    resumed.start(["2/a", "2/b"], lambda: pytest.fail("it has them"))
    assert resumed.take(["2/b", "2/a"], 1) == GROUPS[::-1]
    resumed.load_state_dicts(states[:1])
    assert resumed.take(["2/a", "2/c"], 1) is None  # half of a batch is none
    resumed.load_state_dicts(states)
    assert resumed.take(["2/b", "2/a"], 2) is None  # of a run whose groups are larger


def test_what_sampling_raises_is_raised_where_its_groups_are_taken_and_no_checkpoint_fails_of_it():
    ahead = Ahead()

    def fail():
        raise RuntimeError("No vLLM server answers any more")

    ahead.start(["2/a"], fail)
    assert ahead.state_dict() == {"groups": {}}
    with pytest.raises(RuntimeError, match="No vLLM server"):
        ahead.wait()


def module(**settings):
    settings = {"generator": VLLMServerGenerator(["http://127.0.0.1:1"])} | settings
    return GRPOModule(init_from="none", sampling=Sampling(ahead=True), **settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"generator": None}, r"model\.sampling\.ahead needs a generator beside the trainer, and HFGenerator is none"),
        ({"importance_sampling": ImportanceSampling(cap=None)}, r"give model\.importance_sampling\.cap a number"),
        ({"dynamic_sampling": DynamicSampling(max_draws=1)}, r"set model\.dynamic_sampling\.max_draws and"),
        ({"dynamic_sampling": DynamicSampling(max_resample=1)}, r"max_resample to 0"),
    ],
)
def test_what_stands_against_it_is_refused(settings, words):
    assert module().sampling.ahead
    with pytest.raises(ValueError, match=words):
        module(**settings)

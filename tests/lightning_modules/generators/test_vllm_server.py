"""What of generation by servers needs no vLLM: where requests go, what becomes of those of a server that is lost, how
weights reach all of them. The servers are fakes on the loopback; `make test-vllm` asks real ones."""

import pickle
import warnings
from contextlib import ExitStack

import pytest
import torch
from fake_vllm import FakeVLLM
from training_runs import command_on_ranks, metrics, rewards_module

from datamodules.system import redaction
from lightning_modules.generators import HFGenerator, VLLMServerGenerator, server_requests
from lightning_modules.generators.base import HoldsWeights
from lightning_modules.generators.sampling import row_key
from lightning_modules.policy.lora import LoRA
from lightning_modules.policy.model import build_policy

PROMPTS = [[5, 6, 7], [100, 200, 300, 9], [40], [8, 9, 10, 11, 12], [250, 3]]
GENERATE = "POST /inference/v1/generate"
LOAD = ["GET /server_info", "POST /collective_rpc", "POST /collective_rpc", "POST /reset_prefix_cache"]
LOAD += ["POST /update_weight_version", GENERATE]


@pytest.fixture(autouse=True)
def in_haste(monkeypatch):
    monkeypatch.setattr(server_requests, "PAUSES", (0.01, 0.01, 0.01))


@pytest.fixture
def policy(tiny_model_dir):
    return build_policy(str(tiny_model_dir))


@pytest.fixture
def servers():
    with ExitStack() as stack:
        yield [stack.enter_context(FakeVLLM()) for _ in range(2)]


def generator(servers, **settings):
    return VLLMServerGenerator([server.url for server in servers], **{"max_new_tokens": 6, "timeout": 60.0} | settings)


def ids(completions):
    return [[completion.token_ids for completion in samples] for samples in completions]


def change(policy, by=0.05):
    with torch.no_grad():
        for weight in policy.parameters():
            weight += by * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))


def count(server):
    """Completions that a server was asked for, without its probes."""
    return sum("prompt_logprobs" not in body["sampling_params"] for body in server.bodies)


def test_completions_are_those_of_the_policy_and_come_from_all_servers(policy, servers):
    mine = generator(servers)
    completions = mine(policy, PROMPTS, stop_ids=[])
    assert ids(completions) == ids(HFGenerator(max_new_tokens=6)(policy, PROMPTS, stop_ids=[]))
    assert [completion.finish_reason for (completion,) in completions] == ["length"] * 5
    for prompt, (completion,) in zip(PROMPTS, completions, strict=True):
        want = servers[0].scores(prompt, completion.token_ids)
        assert completion.logprobs == pytest.approx(want, abs=1e-5)
    assert sorted(map(count, servers)) == [2, 3]
    for server in servers:
        assert server.asked == LOAD + [GENERATE] * count(server)
    assert mine(policy, []) == []


def test_a_request_names_every_setting_and_a_seed_of_its_own(policy, servers):
    mine = generator(servers[:1], temperature=0.7, top_p=0.9, seed=3)
    mine(policy, [[5, 6]], ["7/row"], n=2, stop_ids=[2, 9])
    settings = {"max_tokens": 6, "temperature": 0.7, "top_p": 0.9, "stop_token_ids": [2, 9]}
    settings |= {"ignore_eos": True, "detokenize": False, "logprobs": 0}
    want = [
        {"token_ids": [5, 6], "sampling_params": settings | {"seed": row_key(3, "7/row", i) % 2**63}} for i in (0, 1)
    ]
    assert len(servers[0].bodies) == 3 and all(body in servers[0].bodies[1:] for body in want)  # in any order


def test_samples_are_in_the_order_of_prompts_and_depend_on_their_names(policy, servers):
    mine = generator(servers, temperature=1.0, seed=0)
    want = ids(mine(policy, PROMPTS, "abcde", n=3))
    assert ids(mine(policy, PROMPTS[::-1], "edcba", n=3)) == want[::-1]
    assert ids(mine(policy, PROMPTS, "vwxyz", n=3)) != want
    assert len({tuple(sample) for samples in want for sample in samples}) > 10


def test_ranks_with_one_prompt_ask_different_servers(policy, servers, monkeypatch):
    for rank in (0, 1, 2):
        mine = generator(servers)
        mine.sync(policy)
        monkeypatch.setattr("lightning_modules.generators.vllm_server._rank", lambda rank=rank: rank)
        mine(policy, PROMPTS[:1])
        monkeypatch.undo()
    assert [count(server) for server in servers] == [2, 1]


def test_no_more_requests_are_in_flight_than_allowed(policy, servers):
    mine, most, busy = generator(servers[:1], per_server=2), [], []
    mine.sync(policy)
    servers[0].hangs = "generate"
    mine.timeout = mine.servers.timeout = 1.0
    with pytest.raises(RuntimeError, match="no whole answer within 1 s"):
        mine(policy, PROMPTS)
    assert count(servers[0]) == 4, (most, busy)  # two, and two more after those; the third failure ends it


def test_a_policy_that_changed_is_synced_before_it_is_sampled_from(policy, servers):
    mine = generator(servers)
    before = ids(mine(policy, PROMPTS, stop_ids=[]))
    version = mine.synced.version
    mine(policy, PROMPTS)
    assert mine.synced.version == version
    change(policy)
    after = ids(mine(policy, PROMPTS, stop_ids=[]))
    assert mine.synced.version != version
    assert after == ids(HFGenerator(max_new_tokens=6)(policy, PROMPTS, stop_ids=[])) != before


def test_the_requests_of_a_server_that_dies_go_to_the_others_and_it_is_asked_again_at_the_next_sync(policy, servers):
    mine = generator(servers, per_server=2)
    mine.sync(policy)
    servers[1].dies_at = 3  # the probe, an answer, and the end
    with pytest.warns(UserWarning, match=f"The vLLM server at {servers[1].url} is lost: ") as warned:
        completions = mine(policy, PROMPTS, n=2, stop_ids=[])
        mine(policy, PROMPTS)
    assert ids(completions) == ids(HFGenerator(max_new_tokens=6)(policy, PROMPTS, n=2, stop_ids=[]))
    assert len(warned) == 1 and [server.url for server in mine.servers.alive] == [servers[0].url]
    change(policy)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is still dead, of which nothing new is to be said
        mine.sync(policy)
    servers[1].restart()
    mine.sync(policy)
    asked = count(servers[1])
    assert ids(mine(policy, PROMPTS, stop_ids=[])) == ids(HFGenerator(max_new_tokens=6)(policy, PROMPTS, stop_ids=[]))
    assert count(servers[1]) - asked in (2, 3) and not mine.servers.lost  # the fifth prompt goes to whichever is free


def test_when_all_servers_are_dead_one_sentence_says_so(policy, servers):
    mine = generator(servers)
    mine.sync(policy)
    for server in servers:
        server.dies_at = 2
    sentence = (
        r"^No vLLM server answers any more \(http://127.*: .*; http://127.*: .*\): start them again .* --ckpt_path"
    )
    with pytest.warns(UserWarning, match="is lost"), pytest.raises(RuntimeError, match=sentence) as error:
        mine(policy, PROMPTS)
    assert all(server.url in str(error.value) for server in servers)


def test_connections_that_drop_all_at_once_are_no_failure_of_their_server(policy, servers):
    mine = generator(servers[:1])
    mine.sync(policy)
    servers[0].cuts = ["/inference/v1/generate"] * 7 + ["/health"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        completions = mine(policy, PROMPTS, stop_ids=[])
    assert ids(completions) == ids(HFGenerator(max_new_tokens=6)(policy, PROMPTS, stop_ids=[]))
    assert count(servers[0]) == 5 + 7


def test_a_connection_that_drops_in_a_sync_is_no_failure_of_its_server(policy, servers):
    mine = generator(servers)
    servers[0].cuts = ["/server_info", "/collective_rpc", "/reset_prefix_cache", "/update_weight_version"]
    servers[1].cuts = ["/collective_rpc", "/inference/v1/generate"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mine.sync(policy)
    assert not servers[0].cuts and not servers[1].cuts and [server.asked for server in servers] == [LOAD] * 2


def test_a_server_that_drops_every_connection_is_lost_and_not_the_run(policy, servers):
    mine = generator(servers)
    mine.sync(policy)
    servers[0].cuts = ["/inference/v1/generate"] * 100
    with pytest.warns(UserWarning, match=f"{servers[0].url} is lost: Server disconnected"):
        completions = mine(policy, PROMPTS, stop_ids=[])
    assert ids(completions) == ids(HFGenerator(max_new_tokens=6)(policy, PROMPTS, stop_ids=[]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said once
        mine.sync(policy)
    assert mine.servers.lost == {servers[0].url: "Server disconnected"}


def test_a_server_that_fails_now_and_then_is_kept(policy, servers):
    mine = generator(servers[:1], per_server=1)
    mine.sync(policy)
    generate, calls = servers[0].generate, []

    def sometimes(*args):
        calls.append(args)
        if len(calls) % 3:
            raise RuntimeError("a fault")  # status 500
        return generate(*args)

    servers[0].generate = sometimes
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        completions = mine(policy, PROMPTS, stop_ids=[])
    assert ids(completions) == ids(HFGenerator(max_new_tokens=6)(policy, PROMPTS, stop_ids=[])) and len(calls) == 15


def test_a_server_with_weights_of_its_own_is_not_sampled_from(policy, servers):
    mine = generator(servers)
    mine.sync(policy)
    servers[0].restart()
    with pytest.warns(UserWarning, match="is lost: it holds other weights than it was given: it was started again"):
        completions = mine(policy, PROMPTS, stop_ids=[])
    assert ids(completions) == ids(HFGenerator(max_new_tokens=6)(policy, PROMPTS, stop_ids=[]))
    assert count(servers[1]) >= 5


@pytest.mark.parametrize(("hangs", "why"), [("generate", "no whole answer within 4 s"), ("all", "no whole answer")])
def test_a_server_that_hangs_is_lost_after_the_timeout_or_with_its_health(policy, servers, monkeypatch, hangs, why):
    mine = generator(servers)
    mine.sync(policy)
    if hangs == "all":
        monkeypatch.setattr(server_requests, "WATCH", 0.2)
        monkeypatch.setattr(server_requests, "HEALTH_TIMEOUT", 2.0)  # the other answers from a busy thread
    else:
        mine.servers.timeout = 4.0
    servers[0].hangs = hangs
    with pytest.warns(UserWarning, match=f"{servers[0].url} is lost: {why}"):
        completions = mine(policy, PROMPTS, stop_ids=[])
    assert ids(completions) == ids(HFGenerator(max_new_tokens=6)(policy, PROMPTS, stop_ids=[]))


def test_a_refusal_ends_the_run_with_the_servers_words(policy, servers):
    mine = generator(servers)
    mine.sync(policy)
    servers[1].refuses = 403, "Scale-out endpoints are disabled."
    with pytest.raises(
        RuntimeError, match=r"refuses /inference/v1/generate \(403\): Scale-out .* docs/vllm.md says how"
    ):
        mine(policy, PROMPTS)


def test_all_servers_have_to_answer_at_the_start(policy, servers):
    servers[1].dies_at = 0
    with (
        pytest.warns(UserWarning, match="is lost"),
        pytest.raises(RuntimeError, match=f"have to answer at the start .{servers[1].url}: "),
    ):
        generator(servers).sync(policy)


def test_a_server_that_reports_other_logprobs_is_refused(policy, servers):
    servers[1].settings["logprobs_mode"] = "raw_logprobs"
    with pytest.raises(ValueError, match=f"{servers[1].url} reports raw_logprobs.* --logprobs-mode processed_logprobs"):
        generator(servers).sync(policy)


def test_servers_of_unlike_dtypes_are_refused(policy, servers):
    servers[1].settings["dtype"] = "torch.bfloat16"
    with pytest.raises(ValueError, match=r"weights in torch\.bfloat16, torch\.float32: give all one --dtype"):
        generator(servers).sync(policy)


def test_adapters_merged_into_coarse_weights_are_warned_of_once(policy, servers, tiny_model_dir):
    for server in servers:
        server.settings["dtype"] = "torch.bfloat16"
    mine, adapted = generator(servers), build_policy(str(tiny_model_dir), LoRA(r=2))
    with pytest.warns(
        UserWarning, match=r"into weights in bfloat16, .* --dtype float32, or take VLLMGenerator"
    ) as told:
        mine.sync(adapted)
        mine.sync(adapted)
    assert len(told) == 1
    with warnings.catch_warnings(action="error"):
        generator(servers).sync(policy)
        for server in servers:
            server.settings["dtype"] = "torch.float32"
        generator(servers).sync(adapted)


def test_a_process_that_is_spawned_masks_what_the_one_before_does(monkeypatch):
    sent = pickle.dumps(server_requests.Servers(["http://me:hunter22@127.0.0.1:8000"], 2.0, 3))
    monkeypatch.setattr(redaction, "_kept", set())
    got = pickle.loads(sent)
    assert redaction.redact("401: no me hunter22") == "401: no me <secret>"
    assert [server.url for server in got.alive] == ["http://127.0.0.1:8000"] and (got.timeout, got.per_server) == (2, 3)


def test_a_sync_without_effect_is_noticed(policy, servers):
    mine = generator(servers)
    mine.sync(policy)
    servers[1].deaf = True
    mine.sync(policy)  # nothing to change, so nothing is missing
    change(policy, 1e-6)
    with pytest.raises(
        RuntimeError, match=f"policy's .* those of the vLLM server at {servers[1].url} have not moved at"
    ):
        mine.sync(policy)
    change(policy, 0.3)
    with pytest.raises(
        RuntimeError, match=f"log-probabilities of the vLLM server at {servers[1].url} are .* nats from"
    ):
        mine.sync(policy)


def test_a_weight_that_is_not_finite_reaches_no_server(policy, servers):
    mine = generator(servers)
    mine.sync(policy)
    asked = [list(server.asked) for server in servers]
    with torch.no_grad():
        policy.causal_lm.model.norm.weight[3] = torch.nan
    with pytest.raises(ValueError, match=r"The weight model\.norm\.weight is not finite"):
        mine.sync(policy)
    assert [server.asked for server in servers] == [[*before, "GET /server_info"] for before in asked]


def test_a_prompt_too_long_for_a_server_is_refused(policy, servers):
    servers[1].settings["max_model_len"] = 100
    with pytest.raises(ValueError, match=r"may be 101 tokens long, and a vLLM server takes 100: .* --max-model-len"):
        generator(servers)(policy, [[5] * 95])


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"servers": []}, "servers must be addresses"),
        ({"servers": ["localhost:8000"]}, "servers must be addresses"),
        ({"servers": ["http://me:secret@x:0"]}, "servers must be addresses such as http://localhost:8000, not x:0 "),
        ({"servers": ["http://localhost:8000/v1"]}, "without a path"),
        ({"servers": ["http://node7:8000"]}, "takes weights from a folder over the loopback alone"),
        ({"servers": ["http://10.0.0.1:8000"]}, "10.0.0.1:8000 is no loopback: give transfer nccl, or"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"per_server": 0}, "per_server"),
        ({"timeout": 0}, "timeout"),
        ({"probe_tolerance": 0.0}, "probe_tolerance"),
        ({"temperature": -1.0}, "temperature"),
    ],
)
def test_impossible_settings_are_refused(bad, words):
    with pytest.raises(ValueError, match=words) as error:
        VLLMServerGenerator(**{"servers": ["http://[::1]:8000", "http://localhost:8001/"]} | bad)
    assert "secret" not in str(error.value)


def test_shards_are_taken_as_they_are():
    """So that no rank makes an unsharded copy; two ranks do so below."""
    assert isinstance(VLLMServerGenerator(["http://127.0.0.1:8000"]), HoldsWeights)


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "vllm" else name)
    with pytest.raises(ValueError, match=r"pip install -e '\.\[vllm\]'"):
        VLLMServerGenerator(["http://node7:8000"], transfer="nccl")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"VLLMServerGenerator needs aiohttp: pip install -e '\.\[judge\]'"):
        VLLMServerGenerator(["http://localhost:8000"])


VOWELS = "def vowels(completion, tools, answers):\n    return float(sum(c in 'aeiou' for c in completion))\n"
RUN = {
    "model.init_args.generator": "lightning_modules.generators.VLLMServerGenerator",
    "model.init_args.sampling.group_size": 4,
    "model.init_args.learning_rate": 0.01,
    "model.init_args.rewards": '{"vowels": {"function": "toy_rewards.vowels"}}',
    "model.init_args.reward_timeout": 60,
    "data.init_args.val_path": "null",
    "data.init_args.prompts_per_step": 4,
    "trainer.max_steps": 3,
    "trainer.val_check_interval": 3,
    "trainer.devices": 2,
}


@pytest.mark.ranks
def test_two_ranks_learn_from_samples_of_the_policy_as_it_is(servers, base_args, tmp_path):
    for server in servers:
        server.settings["max_model_len"] = 4096
    options = (
        RUN
        | {"trainer.strategy.class_path": "lightning_modules.strategies.FSDP2"}
        | {"model.init_args.generator.init_args.servers": [s.url for s in servers]}
    )
    with rewards_module(tmp_path, VOWELS):
        done = command_on_ranks("fit", "--config=configs/grpo.yaml", *base_args(tmp_path, **options))
    assert done.returncode == 0, done.stderr[-4000:]
    logged = metrics(tmp_path / "egpo-fit-0", ("sampling/", "train/grad_norm"))
    for step in (1, 2, 3):  # all but the first sample from a policy that has been updated
        assert logged[step, "sampling/logp_diff_max"] <= 1e-4
        assert logged[step, "train/grad_norm"] > 0
    for server in servers:
        assert count(server) > 12 and server.asked.count("POST /update_weight_version") >= 3


@pytest.mark.ranks
def test_what_ends_the_first_rank_ends_the_others(servers, base_args, tmp_path):
    servers[1].settings["logprobs_mode"] = "raw_logprobs"
    options = RUN | {"model.init_args.generator.init_args.servers": [s.url for s in servers]}
    with rewards_module(tmp_path, VOWELS):
        done = command_on_ranks("fit", "--config=configs/grpo.yaml", *base_args(tmp_path, **options))
    assert done.returncode != 0 and "reports raw_logprobs, which are not those" in done.stderr

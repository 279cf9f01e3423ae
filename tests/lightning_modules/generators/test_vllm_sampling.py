from lightning_modules.generators.sampling import row_key
from lightning_modules.generators.vllm_sampling import sampling_params


def test_completions_of_a_prompt_follow_each_other_and_differ_in_their_seeds_alone():
    params = sampling_params(["7/a", 5], 2, 3, 6, {9}, 0.7, 0.9)
    seeds = [each.pop("seed") for each in params]
    assert seeds == [row_key(3, name, i) % 2**63 for name, i in (("7/a", 0), ("7/a", 1), (5, 0), (5, 1))]
    assert len(set(seeds)) == 4 and all(0 <= seed < 2**63 for seed in seeds)
    settings = {"max_tokens": 6, "temperature": 0.7, "top_p": 0.9, "stop_token_ids": [9]}
    assert params == [settings | {"ignore_eos": True, "detokenize": False, "logprobs": 0}] * 4

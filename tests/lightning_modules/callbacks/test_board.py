"""What TensorBoard shows of a run, asked of TensorBoard itself."""

import json
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from types import SimpleNamespace

import pytest
from lightning.pytorch.trainer.states import TrainerFn
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.program import TensorBoard

from lightning_modules.callbacks.board import SETTINGS, RunLogger, listed_settings
from lightning_modules.cli import main
from lightning_modules.srml import SRMLModule

CONFIG = ["--config", "configs/srml.yaml"]
RUN = {"trainer.max_steps": 2, "trainer.val_check_interval": 1, "data.init_args.batch_size": 4}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, base_args):
    root = tmp_path_factory.mktemp("runs")
    main(["fit", *CONFIG, *base_args(root, **RUN)])
    main(["test", *CONFIG, *base_args(root, **{"model.init_args.init_from": root / "srml-fit-0"})])
    return root


@pytest.fixture(scope="module")
def ask(runs):
    """Asks a TensorBoard that serves the runs for what one of its plug-ins says."""
    board = TensorBoard()
    board.configure(argv=[None, "--logdir", str(runs), "--host=127.0.0.1", "--port=0", "--load_fast=false"])
    url = board.launch()

    def ask(path, body=None, **query):
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{url}data/{path}?{urllib.parse.urlencode(query)}", data, headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    for _ in range(100):  # it reads the files in the background
        if len(ask("runs")) == 4 and "tool/exact_match" in ask("plugin/scalars/tags").get("srml-test-0", {}):
            return ask
        time.sleep(0.2)
    pytest.fail("TensorBoard has not read the runs")


def test_runs_and_segments_have_names_and_hence_colours_of_their_own(ask):
    assert set(ask("runs")) == {"srml-fit-0", "srml-fit-0/cot", "srml-fit-0/call", "srml-test-0"}
    values = {}
    for name in ("", "/cot", "/call"):
        points = ask("plugin/scalars/scalars", run=f"srml-fit-0{name}", tag="train/loss")
        assert [step for _, step, _ in points] == [1, 2]
        values[name] = [value for *_, value in points]
    for name in ("cot", "call"):
        points = ask("plugin/scalars/scalars", run="srml-fit-0", tag=f"train/loss_{name}")
        assert [value for *_, value in points] == values[f"/{name}"]
    assert len({tuple(curve) for curve in values.values()}) == 3
    tags = ask("plugin/scalars/tags")
    assert {"train/loss", "train/weight", "train/entropy", "train/token_acc"} <= set(tags["srml-fit-0/cot"])


def test_scores_are_on_top_and_every_chart_of_training_has_a_curve(ask):
    categories = ask("plugin/custom_scalars/layout")["category"]
    assert [category["title"] for category in categories] == ["Scores", "Loss", "Optimizer", "Speed"]
    assert categories[0]["chart"][0]["multiline"]["tag"] == ["^tool/exact_match$"]
    logged = {tag for tags in ask("plugin/scalars/tags").values() for tag in tags}
    for category in categories[1:3]:
        for chart in category["chart"]:
            if not chart["title"].startswith("loss of the validation"):
                assert any(re.search(tag, name) for tag in chart["multiline"]["tag"] for name in logged), chart


def test_a_tests_scores_are_at_the_step_of_its_model(ask, runs):
    for tag in ask("plugin/scalars/tags")["srml-test-0"]:
        assert [step for _, step, _ in ask("plugin/scalars/scalars", run="srml-test-0", tag=tag)] == [2], tag
    (sample,) = ask("plugin/text/text", run="srml-test-0", tag="samples/test/text_summary")
    assert sample["step"] == 2 and "<blockquote>" in sample["text"]
    assert {line.split(",")[0] for line in (runs / "srml-test-0/metrics.csv").read_text().split()[1:]} == {"2"}


def test_samples_are_blocks_that_wrap(ask):
    texts = ask("plugin/text/text", run="srml-fit-0", tag="samples/val/text_summary")
    assert [text["step"] for text in texts] == [1, 2]
    for text in texts:
        assert re.search(r"<h3>[✓✗] \S+ score [01]</h3>", text["text"])
        assert re.findall(r"<strong>(Query|Reference)</strong>", text["text"])[:2] == ["Query", "Reference"]


@pytest.mark.parametrize(
    ("balance", "listed"), [("fixed", {"cot_weight": 0.4}), ("learnable", {"cot_weight": 0.4}), ("sft", {})]
)
def test_a_weight_that_nothing_uses_is_not_listed(balance, listed):
    state = SimpleNamespace(fn=TrainerFn.FITTING)
    trainer = SimpleNamespace(datamodule=None, precision="32-true", world_size=1, state=state)
    trainer.estimated_stepping_batches = 2
    settings = listed_settings(trainer, SRMLModule(init_from="x", balance=balance, cot_weight=0.4))
    assert {name: value for name, value in settings.items() if name == "cot_weight"} == listed


@pytest.mark.parametrize("status", ["success", "failed"])
def test_only_a_run_that_has_ended_well_says_so(tmp_path, status):
    logger = RunLogger(tmp_path, name="", version="run")
    logger.begin({"steps": 2}, hidden=())
    logger.finalize(status)
    found = EventAccumulator(str(tmp_path / "run")).Reload().PluginTagToContent("hparams")
    assert ("_hparams_/session_end_info" in found) == (status == "success")


def test_settings_are_listed_beside_the_final_metrics(ask, runs):
    experiment = ask("plugin/hparams/experiment", {"experimentName": ""})
    assert {info["name"] for info in experiment["hparamInfos"]} == set(SETTINGS)
    columns = [{"metric": info["name"]} for info in experiment["metricInfos"]]
    order = {"sliceSize": 9, "allowedStatuses": ["STATUS_SUCCESS"], "colParams": columns}
    groups = ask("plugin/hparams/session_groups", order)["sessionGroups"]
    fit, test = sorted(groups, key=lambda group: group["sessions"][0]["name"])
    assert (fit["sessions"][0]["name"], test["sessions"][0]["name"]) == ("srml-fit-0", "srml-test-0")
    assert fit["hparams"].items() >= {"method": "srml", "steps": 2, "rows_per_step": 4}.items()
    assert test["hparams"]["model"] == str(runs / "srml-fit-0") and "steps" not in test["hparams"]
    found = {value["name"]["tag"]: value for value in fit["metricValues"]}
    assert found["train/loss"]["trainingStep"] == found["tool/exact_match"]["trainingStep"] == 2

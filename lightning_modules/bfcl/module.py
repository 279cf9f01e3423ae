"""Evaluation of a checkpoint on the Berkeley Function Calling Leaderboard (BFCL v3 and v4)."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import TensorBoardLogger

from datamodules.bfcl.package import registered
from datamodules.bfcl.prompts import BFCLDataModule
from datamodules.bfcl.rows import BFCLRow
from datamodules.chat.tokenizer import resolve_model_folder
from datamodules.loading import PromptBatch
from datamodules.readers import fingerprint
from datamodules.system.arguments import declared
from datamodules.system.files import append_jsonl, write_text
from lightning_modules.bfcl.results import (
    SETTINGS,
    Results,
    earlier_results,
    result_file,
    result_folder,
    write_results,
)
from lightning_modules.bfcl.scores import BFCLAccuracy, Score, match_answer
from lightning_modules.bfcl.table import bfcl_table
from lightning_modules.evaluation import EvaluationModule
from lightning_modules.generators import Completion, Generator
from lightning_modules.policy.weights import weight_folder
from lightning_modules.ranks import failing_together, of_every_rank
from rewards.parser import split_completion


@declared
class BFCLModule(EvaluationModule):
    """Evaluates a model on BFCL: answers the rows, writes answers in the official layout, scores them as BFCL does.

    Answers that an earlier run below the same `trainer.default_root_dir` gave are taken over, if model, prompts and
    settings are the same: an evaluation that was interrupted resumes where it stopped.

    Args:
        init_from: The model: a run folder (its `hf/`), a Hugging Face folder or a hub id.
        samples: Answers per row. The score is the mean over all of them; each has a result folder of its own.
        temperature: Divides the logits; 0 takes the most likely token.
        generator: Samples the answers, at no temperature of its own; 256 tokens at most when None.
        answer_tags: "none", or "answer" if the model wraps its calls in `<answer>...</answer>`.
        registered_name: The name under which result files are written. The official scorer takes no other names than
            those of its own list; any model of it that is prompted and has the default decoder will do.
        attn_implementation: Attention kernel, by its name in transformers.

    Raises:
        ValueError: `samples` is impossible, several of them would all be the same, or the generator has a temperature.
    """

    def __init__(
        self,
        init_from: str,
        samples: int = 1,
        temperature: float = 0.0,
        generator: Generator | None = None,
        answer_tags: Literal["none", "answer"] = "none",
        registered_name: str = "Qwen/Qwen3-8B",
        attn_implementation: str = "sdpa",
    ) -> None:
        super().__init__(init_from, attn_implementation, generator)
        if samples < 1 or (samples > 1 and temperature == 0):
            raise ValueError(
                f"model.samples is {samples} and model.temperature {temperature}; give at least one sample, and a "
                "temperature above 0 for several"
            )
        if getattr(generator, "temperature", 0) not in (0, temperature):
            raise ValueError(
                f"model.generator.temperature is {generator.temperature}, and BFCL's answers are sampled at "
                f"model.temperature, which is {temperature}: set that, and leave the generator's out"
            )
        self.samples = samples
        self.temperature = temperature
        self.answer_tags = answer_tags
        self.registered_name = registered_name

    def setup(self, stage: str) -> None:
        """Validate the settings before any weight is loaded.

        Raises:
            ValueError: The command, the data or the registered name is not one that this works with.
        """
        super().setup(stage)
        data = self.data
        if stage != "test" or not isinstance(data, BFCLDataModule):
            raise ValueError("BFCLModule answers the rows of a BFCLDataModule, and does so in funreason test only")
        if not registered(data.package, self.registered_name):
            raise ValueError(
                f"model.registered_name: bfcl-eval {data.package.release} knows no model {self.registered_name}; give "
                "one that `bfcl models` lists"
            )

    def on_test_start(self) -> None:
        """Load the answers of earlier runs with the same settings, and write this run's, now that Lightning tells them.

        Raises:
            ValueError: A file of answers is damaged.
        """
        super().on_test_start()
        data = self.data
        self.run = Path(self.trainer.log_dir)  # a collective: every rank asks
        self.answers: list[Results] = []
        with failing_together():
            if self.trainer.is_global_zero:
                root, settings = self.run.parent, self.settings(data)
                self.answers = earlier_results(root, settings, data.package, self.registered_name, data.ids)
                known = sum(map(self.answered, data.rows))
                if known:
                    print(f"{known:,} of {len(data.rows):,} rows were answered by earlier runs in {root}.")
                write_text(self.run / SETTINGS, json.dumps(settings, indent=2) + "\n")
                self.save(data.ids)
        self.answers = self.trainer.strategy.broadcast(self.answers)

    def settings(self, data: BFCLDataModule) -> dict[str, Any]:
        """All settings that the answers depend on, and fingerprints of all files."""
        checkpoint, template = self.trainer.ckpt_path, data.chat_template
        settings = {
            "init_from": self.init_from,
            "files": fingerprints(Path(weight_folder(resolve_model_folder(self.init_from)))),
            "checkpoint": fingerprints(Path(checkpoint)) if checkpoint else None,
            "chat_template": template and (fingerprints(Path(template)) or template),
            "bfcl-eval": data.package.release,
            "precision": str(self.trainer.precision),
            "generator": type(self.generator).__name__,
            "dtype": getattr(self.generator, "dtype", None),
        }
        settings |= {name: getattr(self.generator, name) for name in ("max_new_tokens", "top_p", "seed")}
        own = ("samples", "temperature", "answer_tags", "registered_name", "attn_implementation")
        return settings | {name: getattr(self, name) for name in own}

    def answered(self, row: BFCLRow) -> bool:
        """Whether a row has answers for all samples."""
        return all(row.id in results for results in self.answers)

    def test_step(self, batch: PromptBatch, batch_idx: int) -> list[Any]:
        """Answer this rank's rows of a batch that have no answer yet, and save the answers of all ranks."""
        pending = [
            (row, ids) for row, ids in zip(batch.examples, batch.prompt_ids, strict=True) if not self.answered(row)
        ]
        completions = self.generator(
            self.generating[0],
            [ids for _, ids in pending],
            [row.id for row, _ in pending],
            n=self.samples,
            stop_ids=self.stop_ids,
            temperature=self.temperature,
        )
        lines = [
            (row.category, [self.line(row, ids, completion) for completion in answers])
            for (row, ids), answers in zip(pending, completions, strict=True)
        ]
        new = [line for rank in of_every_rank(lines) for line in rank]
        for _, answers in new:
            for results, line in zip(self.answers, answers, strict=True):
                results[line["id"]] = line
        if self.trainer.is_global_zero:
            self.save({category for category, _ in new})
        return []

    def line(self, row: BFCLRow, prompt: Sequence[int], completion: Completion) -> dict[str, Any]:
        """A line of a result file: what follows the reasoning is the result, because the official decoder reads all."""
        cot, answer, _ = split_completion(completion.text(self.tokenizer), self.answer_tags)
        return {
            "id": row.id,
            "result": answer,
            "reasoning_content": cot,
            "input_token_count": len(prompt),
            "output_token_count": len(completion.token_ids),
        }

    def save(self, categories: Iterable[str]) -> None:
        """Write the result files of these categories, in the official order."""
        data = self.data
        for sample, results in enumerate(self.answers):
            for category in categories:
                lines = [results[row] for row in data.ids[category] if row in results]
                if lines:
                    folder = result_folder(self.run, sample)
                    write_results(result_file(folder, data.package, self.registered_name, category), lines)

    def on_test_epoch_end(self) -> None:
        """Score the answers, log the scores, and note what was wrong with each wrong one in `wrong.jsonl`."""
        data = self.data
        sizes = {category: len(ids) * self.samples for category, ids in data.ids.items()}
        accuracy, wrong = BFCLAccuracy(data.package.version, sizes).to(self.device), []
        for row in filter(self.answered, data.rows[self.trainer.global_rank :: self.trainer.world_size]):
            for sample, results in enumerate(self.answers, start=1):
                verdict = match_answer(data.package, row, results[row.id]["result"])
                accuracy.update(row.category, verdict.matched)
                if not verdict.matched:
                    wrong.append({"sample": sample, "reason": verdict.reason} | results[row.id])
        self.scores: dict[str, Score] = accuracy.compute()
        places = {row.id: place for place, row in enumerate(data.rows)}
        everyone = sorted((line for rank in of_every_rank(wrong) for line in rank), key=lambda line: places[line["id"]])
        if self.trainer.is_global_zero:
            append_jsonl(self.run / "wrong.jsonl", everyone)
        self.log_metrics({f"bfcl/{name}": score.accuracy for name, score in self.scores.items() if score.known})

    def on_test_end(self) -> None:
        """Free the unsharded copy, and print the table."""
        super().on_test_end()
        if not self.trainer.is_global_zero:
            return
        data = self.data
        sizes = {category: len(ids) for category, ids in data.ids.items()}
        table = bfcl_table(self.scores, data.package, sizes, self.init_from, self.samples)
        print(f"{table}\n\nAnswers: {result_folder(self.run, 0)}; what was wrong: {self.run / 'wrong.jsonl'}")
        if isinstance(self.trainer.logger, TensorBoardLogger):
            text = "\n".join(f"    {line}" for line in table.splitlines())  # a block of code in Markdown
            self.trainer.logger.experiment.add_text("bfcl/table", text, self.global_step)


def fingerprints(path: Path) -> dict[str, str]:
    """Those of a file, or of the files of a folder, by name; none of what is not there."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return {file.name: fingerprint(str(file)) for file in files if file.is_file()}

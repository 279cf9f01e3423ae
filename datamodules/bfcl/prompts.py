"""Prompts of the Berkeley Function Calling Leaderboard (BFCL), to evaluate a model on."""

from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_only

from datamodules.bfcl.package import INSTALLED, decoder, find_package
from datamodules.bfcl.rows import CATEGORIES, chat, check_categories, language_of, read_category
from datamodules.chat.templates import turns_text
from datamodules.chat.tokenizer import load_tokenizer
from datamodules.loading import PromptLoader
from datamodules.system.arguments import declared


@declared
class BFCLDataModule(LightningDataModule):
    """Rows of BFCL v3 or v4 with the official prompts, for `funreason test` with a `BFCLModule`.

    The rows are those of the `bfcl-eval` package; nothing is downloaded. They are for evaluation: a model that was
    trained on them has no BFCL score.

    Args:
        tokenizer: The model whose tokenizer and chat template to use (`model.init_args.init_from`).
        path: `bfcl_eval` is the installed package, with BFCL v3; or a folder that another release was unpacked into,
            such as `.venv/bfcl-v4`.
        categories: The categories to evaluate; all single-turn ones when None.
        limit: Evaluate so many rows, the first of each category and as many of each as can be, for a quick look.
        eval_batch_size: Prompts generated together, over all ranks; results are saved after each such batch.
        chat_template: A file with a chat template, or "chatml", for a model that has none.

    Raises:
        FileNotFoundError: There is no such package.
        ValueError: A size or a category is impossible, or the package is of another release.
    """

    def __init__(
        self,
        tokenizer: str,
        path: str = INSTALLED,
        categories: list[str] | None = None,
        limit: int | None = None,
        eval_batch_size: int = 64,
        chat_template: str | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("limit", limit), ("eval_batch_size", eval_batch_size)):
            if size is not None and size < 1:
                raise ValueError(f"data.{name} is {size}; give at least 1")
        self.tokenizer = tokenizer
        self.limit = limit
        self.eval_batch_size = eval_batch_size
        self.chat_template = chat_template
        self.package = find_package(path)
        self.categories = list(CATEGORIES[self.package.version] if categories is None else categories)
        check_categories(self.categories, self.package.version)

    def setup(self, stage: str) -> None:
        """Read the rows and encode their prompts.

        Raises:
            ValueError: The command is not `test`.
        """
        if stage != "test":
            raise ValueError(f"BFCL is for evaluation: run it with funreason test, not {stage}")
        for category in self.categories:
            decoder(self.package, language_of(category))  # a parser that is missing shows before anything is generated
        every = {category: read_category(self.package, category) for category in CATEGORIES[self.package.version]}
        self.ids = {category: [row.id for row in rows] for category, rows in every.items()}  # of all, asked for or not
        sizes = {category: len(every[category]) for category in self.categories}
        shares = sizes if self.limit is None else spread_over_categories(sizes, self.limit)
        self.rows = [row for category in self.categories for row in every[category][: shares[category]]]
        tokenizer = load_tokenizer(self.tokenizer, self.chat_template)
        texts = [turns_text(tokenizer, chat(self.package, row)) for row in self.rows]
        self.prompt_ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
        self._say()

    def test_dataloader(self) -> PromptLoader:
        """Loader of this rank's share of each batch of prompts."""
        rank, ranks = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return PromptLoader(self.rows, self.prompt_ids, self.eval_batch_size, rank, ranks)

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest prompt."""
        return max(map(len, self.prompt_ids))

    @rank_zero_only
    def _say(self) -> None:
        lengths = sorted(map(len, self.prompt_ids))
        print(
            f"BFCL v{self.package.version} (bfcl-eval {self.package.release}): {len(self.rows):,} of "
            f"{sum(map(len, self.ids.values())):,} single-turn rows, {len(self.categories)} categories; tokens of a "
            f"prompt: median {lengths[len(lengths) // 2]:,}, longest {lengths[-1]:,}."
        )


def spread_over_categories(sizes: dict[str, int], limit: int) -> dict[str, int]:
    """Rows of each category that make `limit` in all: one of each in turn, of those that still have some."""
    shares, left = dict.fromkeys(sizes, 0), limit
    while left and (open_ := [name for name in sizes if shares[name] < sizes[name]]):
        for name in open_[:left]:
            shares[name] += 1
        left -= len(open_[:left])
    return shares

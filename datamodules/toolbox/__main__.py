"""`python -m datamodules.toolbox` writes rows of the shipped corpus to a JSONL file."""

import argparse
from collections.abc import Sequence

from datamodules.system.errors import one_sentence
from datamodules.system.files import check_file
from datamodules.toolbox.rows import SPLITS, make_corpus
from datamodules.xlam import write_jsonl


def main(args: Sequence[str] | None = None) -> None:
    """Write rows of the corpus to a JSONL file."""
    parser = argparse.ArgumentParser(prog="python -m datamodules.toolbox", description=main.__doc__)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--split", choices=SPLITS, default="heldout")
    with one_sentence(args) as words:
        options = parser.parse_args(words)
        file = check_file("--out", options.out)
        write_jsonl(file, make_corpus(options.split, options.rows, options.seed))
        print(f"{options.rows} rows of the {options.split} split, seed {options.seed}: {file}")


if __name__ == "__main__":
    main()

"""The command line: `funreason-refine --config FILE [--data.path ROWS] [--output_dir DIR] [--limit N] [--dry-run]`."""

import sys
from collections.abc import Sequence
from typing import Any

import yaml
from jsonargparse import Namespace

from datamodules.refinement.estimate import dry_run
from datamodules.refinement.refinement import Refinement
from datamodules.system.command_line import SentenceParser
from datamodules.system.errors import one_sentence
from datamodules.system.escaping import visible
from datamodules.system.redaction import keep_secrets_of, refuse_masked


def parse(args: Sequence[str] | None = None) -> tuple[dict[str, Any], Namespace]:
    """The settings in force, as plain values and as the objects that they name."""
    parser = SentenceParser(prog="funreason-refine", description="Refine rows of function calls: JSONL in, JSONL out.")
    parser.add_argument("--config", action="config", help="YAML file; a later one wins")
    parser.add_class_arguments(Refinement)
    parser.add_argument("--dry-run", action="store_true", help="print the prompts of three rows and the cost, and stop")
    config = parser.parse_args(None if args is None else list(args))
    settings = yaml.safe_load(parser.dump(config))
    refuse_masked(settings)
    keep_secrets_of(settings)
    return {k: v for k, v in settings.items() if k not in ("config", "dry_run")}, parser.instantiate_classes(config)


def main(args: Sequence[str] | None = None) -> None:
    """Run the command. Bad input and judges that cannot be reached end it with one sentence and exit code 1."""
    try:
        with one_sentence(args) as words:
            settings, options = parse(words)
            refinement = Refinement(**{name: options[name] for name in settings})
            if options.dry_run:
                print(visible(dry_run(refinement.rows(), refinement.recipe, refinement.judge)))
            else:
                refinement.run(settings)
    except KeyboardInterrupt:
        sys.exit(130)

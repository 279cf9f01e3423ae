"""`funreason show`: what `fit` would train with these options; no weights are loaded and no run begins."""

import os
import sys

HELP = """usage: funreason show --config FILE [any option of funreason fit] [--row N] [--html FILE] [--color]

What `funreason fit` would train with these options: the form found, rows used and left out, their lengths, one row as
the model sees it, how the reward scores answers to it, steps, tokens and memory, and values that still are the demo's.
No weights are loaded, and nothing is written but the cache of encoded rows.

  --row N      the row to show, by its number in the source; the first one trained on unless given
  --html FILE  write the same as a page that stands alone
  --color      colour the text though it goes to no terminal
  --debug      print the traceback of an error above its sentence

The options of a run: funreason fit --help"""


def main(args: list[str] | None = None) -> None:
    """Run `funreason show`.

    Raises:
        ValueError: What `fit` would refuse, too; or `--row` or `--html` cannot be used.
    """
    words = list(sys.argv[1:] if args is None else args)
    if {"-h", "--help"} & set(words):
        print(HELP)
        return
    from datamodules.system.files import check_file, write_text
    from lightning_modules.commands.page import as_html, as_text
    from lightning_modules.commands.preview import Preview, prepare, preview

    run = Preview(["fit", *words])
    page = check_file("--html", run.options.html) if run.options.html else None
    prepare(run.trainer, run.model, run.datamodule)
    sections = preview(run.trainer, run.model, run.datamodule, run.options.row)
    print(as_text(sections, run.options.color or in_color()))
    if page:
        write_text(page, as_html(f"What is trained on {run.datamodule.hparams.path}", sections))
        print(f"\nThe same as a page: {page}")


def in_color() -> bool:
    """Whether what is printed goes to a terminal that shows colours; see no-color.org."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

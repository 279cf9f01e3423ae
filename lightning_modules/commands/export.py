"""`funreason export`: the Hugging Face folder of a checkpoint."""

from datamodules.system.command_line import SentenceParser


def main(args: list[str] | None = None) -> None:
    """Run `funreason export`."""
    parser = SentenceParser(prog="funreason export", description="Write the Hugging Face folder of a checkpoint.")
    parser.add_argument(
        "--ckpt_path",
        required=True,
        help="a .ckpt file, a sharded folder, or a run folder, whose newest checkpoint is meant; it lies where its run "
        "has put it, beside the run's config.yaml",
    )
    parser.add_argument("--output_dir", help="where to; hf- and the checkpoint's name in the run folder when left out")
    parser.add_argument("--init_from", help="where the run's model came from, if not where its config.yaml says")
    options = parser.parse_args(args)

    from lightning_modules.checkpointing.export import export_checkpoint

    print(f"Exported model: {export_checkpoint(**options.as_dict())}")

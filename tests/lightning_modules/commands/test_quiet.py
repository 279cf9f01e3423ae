"""Warnings of other libraries, about which a user can do nothing."""

import warnings

from jsonargparse import _deprecated

from lightning_modules.cli import FunReasonCLI


def test_no_command_ends_where_warnings_are_errors(base_args, tmp_path, monkeypatch):
    """`python -W error`: Lightning calls what jsonargparse is about to drop."""
    monkeypatch.setattr(_deprecated, "shown_deprecation_warnings", set())
    monkeypatch.delenv("JSONARGPARSE_DEPRECATION_WARNINGS", raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cli = FunReasonCLI(["--config", "configs/srml.yaml", *base_args(tmp_path)], run=False)
    assert cli.trainer.max_epochs == 1

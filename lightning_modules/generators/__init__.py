"""What samples completions: see `lightning_modules.rollout` for the generators themselves."""

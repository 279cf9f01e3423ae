"""The causal language model that is trained: its head, precision and configs, and what it can be trusted with."""

"""The causal language model as it is trained: what its head does, and what it can be trusted with."""

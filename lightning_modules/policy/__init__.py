"""The causal language model that is trained."""

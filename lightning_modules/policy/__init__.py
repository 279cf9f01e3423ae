"""The policy, a causal language model: loading, adapters, head, precision, unsharding, and the probe at load."""

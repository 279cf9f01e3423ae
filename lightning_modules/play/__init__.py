"""The page of `funreason play`: groups of sampled answers with tokens, entropies, rewards and advantages."""

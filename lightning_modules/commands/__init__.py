"""Commands of `funreason` that train nothing."""

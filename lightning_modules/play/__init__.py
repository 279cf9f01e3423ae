"""The page of `funreason play`, and what it shows."""

"""Rows and prompts of the Berkeley Function Calling Leaderboard (BFCL)."""

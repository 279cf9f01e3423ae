"""Evaluation on the Berkeley Function Calling Leaderboard (BFCL): a module, its scores and their table."""

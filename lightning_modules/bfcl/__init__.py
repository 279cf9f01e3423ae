"""Evaluation on the Berkeley Function Calling Leaderboard."""

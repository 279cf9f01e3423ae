"""Whether calls are right by the official rules of the Berkeley Function Calling Leaderboard (BFCL)."""

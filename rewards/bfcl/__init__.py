"""When a call is right on the Berkeley Function Calling Leaderboard (BFCL), by its official rules."""

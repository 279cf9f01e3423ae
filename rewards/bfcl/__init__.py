"""When a call is right on the Berkeley Function Calling Leaderboard."""

"""The page of `funreason play`, and what it shows: answers to a request, looked into token by token."""

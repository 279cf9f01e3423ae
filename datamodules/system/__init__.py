"""Around the data: files, locks, processes, the command line and its errors, secrets, escaping of text."""

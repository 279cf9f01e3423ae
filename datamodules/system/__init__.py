"""The machine around the data: files, locks, processes, the terminal, and what must not leave them."""

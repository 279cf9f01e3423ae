"""The shipped corpus, and the general text that the tiny base model was made of."""

"""The shipped corpus, which is generated, and the general text that the tiny base model was made of."""

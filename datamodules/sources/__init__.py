"""Readers of every form of rows (xLAM, OpenAI, ShareGPT and others) into examples."""

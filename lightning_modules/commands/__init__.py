"""The commands of `funreason`, and what its command line does before anything is built."""

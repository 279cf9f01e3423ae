"""The commands of `funreason`, a file each, and what its command line does before anything is built."""

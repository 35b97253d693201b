"""Training: the program that runs as a process of its own, and what launches and records it."""

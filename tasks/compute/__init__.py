"""Arrays in, arrays out: deterministic for a seed, no I/O, nothing of ours, no Prefect."""

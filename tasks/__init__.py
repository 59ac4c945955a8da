"""Steps: each loads, calls a pure function of tasks.compute, and saves. Ids in, small frozen values out."""

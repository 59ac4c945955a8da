"""What remembers: one file per outside system, and queries as plain functions. Imports models, nothing else of ours."""

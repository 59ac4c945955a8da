"""When things happen: one file is one thing that can be deployed. And flows.cli, the `dipnet` command."""

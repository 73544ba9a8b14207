"""What is measured against whom: each module is a command that prints a table and writes JSON to `benchmarks/out`."""

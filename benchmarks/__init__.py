"""What is measured against whom: each command prints a table and writes JSON to `benchmarks/out`."""

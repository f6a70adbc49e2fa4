"""How fastsock compares: the cases, the contenders, and the runs behind docs/benchmarks.md."""

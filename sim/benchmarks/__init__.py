"""The benchmarks of states: records, pure rewards, and environments that import their simulator when they are made."""

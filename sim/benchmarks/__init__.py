"""State benchmarks: records of tasks with pure reward functions; environments import their simulator late."""

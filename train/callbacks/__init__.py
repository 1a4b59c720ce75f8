"""Lightning callbacks: progress bar, checkpoints, router reports, maps of Q, throughput, validation."""

"""Lightning callbacks: progress bar, checkpoints, reports, maps of Q, throughput, validation in the simulator."""

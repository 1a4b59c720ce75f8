"""Simulation: the PyBullet pick-place world, its tasks, success detectors, cameras and scripted policies. No torch.

The lowest layer of the tree, so what every layer needs lives here too: command-line options, worker pools, files.
"""

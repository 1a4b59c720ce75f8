"""Worlds: the PyBullet pick-place scene, its tasks, success detectors, cameras and scripted policies. Never torch."""

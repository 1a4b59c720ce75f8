"""Rollouts, success rates with intervals, and the HTML report."""

"""Rollouts, success rates with intervals, diagnostics and the HTML report."""

"""Measurements: every published figure comes from a command here that prints it with its conditions."""

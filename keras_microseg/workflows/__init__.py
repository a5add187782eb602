"""Workflows: whole jobs, one thin module each. Settings in, files out; the science is in the packages they call."""

"""Devices: the catalogue, what this machine has, how fast it really is, and fleets to plan for."""

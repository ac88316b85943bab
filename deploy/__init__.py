"""Machines and measurements. Imports without torch: a host that only measures needs neither torch nor a GPU driver."""

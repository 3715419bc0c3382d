"""Seconds and bytes: kernels, collectives, memory, and where order meets cost."""

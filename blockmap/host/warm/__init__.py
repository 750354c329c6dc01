"""Warming: reads the blocks that starts read into the kernel's page cache."""

"""Traces say what one start read, and when: they are recorded, ended and judged here.

Imports `volume` and lower layers. Reads come from connections; traces go to files that `learn` reads.
"""

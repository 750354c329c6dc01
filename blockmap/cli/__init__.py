"""The command line: commands, their output and exit codes.

Imports whatever it shows or starts. It alone prints, reads the environment, and picks exit codes: 0, 1 for an error, 2 for
a command that makes no sense, 130 after Ctrl-C.
"""

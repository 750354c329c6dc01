"""The control protocol of a server: its messages, and both of its ends.

Imports `local`, `store` and `format`. `nbdplugin` answers; `host`, `cli` and benchmarks ask.
"""

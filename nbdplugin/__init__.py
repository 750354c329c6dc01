"""What runs inside nbdkit: callbacks, thread states, the control socket, metrics for Prometheus, and learning from starts.

Imports `blockmap.volume` and lower layers. Requests come from NBD clients through nbdkit; bytes go straight into its
buffers. Only here are errno values chosen.
"""

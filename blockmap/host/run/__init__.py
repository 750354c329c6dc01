"""Containers of attached images: how they are made, run, watched until they are ready, and recorded."""

"""What one server composes: exports by name, how they are opened, listed and hydrated, and the log of what was asked of the store.

Imports `volume`, `trace` and what lies below. `nbdplugin` holds one server; requests come from it and from `control`.
"""

"""Learns from starts: traces are merged into profiles, and profiles are ported to versions and stored there as bundles.

Imports `publish`, `filesystem`, `store` and below. Traces come from servers, one file per start; profiles and bundles go
to the store, and references to the bundles into the hints of names. Merging, porting, guessing and the filling of gaps are pure.
"""

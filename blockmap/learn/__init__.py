"""Learns from starts: traces are merged into profiles, and profiles are ported to versions and stored there as bundles.

Imports `publish`, `filesystem`, `store` and below. Traces come from servers, one file per start; profiles and bundles go
to the store, and references to the bundles into the hints of names. Merging, porting, guessing and the filling of gaps are pure.

    automatic       decides whether a start teaches something, for a server that learns by itself
    learner         merges traces with the newest profile, and publishes the next one and its bundles
    first_touches   makes items of a trace; merge makes one order of many starts; block_index maps blocks to files and chunks
    scan            tells scans from starts; sample chooses what of a profile is left out, so that reads of it are seen
    port_profile    ports a profile to another version, with new_files, guess_files and fill_gaps for what that adds
    bundler         decides what goes into a bundle; build_bundle encodes it
    local_files     has this host's traces, and the profiles that it may not publish
"""

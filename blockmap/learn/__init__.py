"""From traces to profiles to bundles: what starts read, merged, carried to other versions, stored where every host finds it.

Imports `fetch`, `store` and `format`. Traces come from servers, one file per start; profiles and bundles go to the store, and
what says where the bundles are goes into the hints of names. Places, merging and carrying are pure.
"""

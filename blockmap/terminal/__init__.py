"""Options and units that several commands share.

Imports `format` and `errors`. `cli`, `bench` and `report` import it.
"""

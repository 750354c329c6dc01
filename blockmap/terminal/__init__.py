"""Options and units that several commands share, and the one way in which all of them print.

Imports `format`, `local` and `errors`. `cli`, `bench` and `report` import it.
"""

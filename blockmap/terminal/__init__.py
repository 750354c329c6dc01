"""What commands share towards people: options, and units of figures.

Imports `format` and `errors`. `cli`, `bench` and `report` import it.
"""

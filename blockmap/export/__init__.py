"""Images given back: what the store has of a version becomes an OCI or docker image again.

Headers come from `layers/`, contents from the version's trees; what a clone changed becomes one more layer. Imports `image` and
`upkeep`, whose readers it reads with; what it writes goes to a folder, a file, or a registry through skopeo.
"""

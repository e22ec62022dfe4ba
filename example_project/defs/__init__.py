"""What ``dg`` finds: a folder each, with a ``defs.yaml``."""

"""Files on the disk: written whole or not at all, locked, named safely; progress of what takes long."""

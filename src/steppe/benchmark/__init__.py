"""The comparison: which runs make a sweep, where they are stored, how they are executed."""

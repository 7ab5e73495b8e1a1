"""Readers: what people have, as record batches in bounded memory, with a list of what could not be read."""

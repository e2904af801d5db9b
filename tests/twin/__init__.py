"""The transcoder again in plain Python: slow, readable, and made from the formats' descriptions, not from its code."""

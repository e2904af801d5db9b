"""Whether both sides are equal: row by row, and told in full where they are not."""

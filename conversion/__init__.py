"""From a table's definition to another server's statements, and what does not carry over."""

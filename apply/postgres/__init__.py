"""PostgreSQL as a target: `target` has the connection, and the parts that share its transactions beside it."""

"""Random histories on real servers: what an application does to its rows and its tables, while everything is killed."""

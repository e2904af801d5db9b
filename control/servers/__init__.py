"""Real PostgreSQL and Kafka servers as local processes, for the demo, the benchmarks and the tests."""

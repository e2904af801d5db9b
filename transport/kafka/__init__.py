"""The log in Kafka, through librdkafka.

What its settings and checks are for: an idempotent producer with `acks=all` keeps order and makes no doubles, but a
record lost in the middle leaves no gap in the offsets of the others, and a producer that gives records up after a
time makes such holes. So records are never given up (`message.timeout.ms=0`; the deadline is ours, and ends the
writer), and each range is checked by the offsets of its first and last record against how many were sent and where
the one before ended. Reading takes two consumers, because one that has thousands of partitions names them all in
every request.
"""

from transport.kafka.log import KafkaLog

__all__ = ["KafkaLog"]

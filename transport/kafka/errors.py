"""Librdkafka's errors in our words."""

from __future__ import annotations

from confluent_kafka import KafkaError, KafkaException

from schemas.errors import LogRewound, LogUnavailable, PermissionMissing, ReplicationError, ValueUnsupported
from transport.log import Partition

DENIED = frozenset(
    {
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.SASL_AUTHENTICATION_FAILED,
        KafkaError._AUTHENTICATION,
    }
)
# The client's own opinion of a partition, _UNKNOWN_TOPIC and _UNKNOWN_PARTITION, is none of these: it has it as well
# while a broker is away.
ABSENT = frozenset({KafkaError.UNKNOWN_TOPIC_OR_PART})
MOVING = frozenset(
    {
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.REPLICA_NOT_AVAILABLE,
        KafkaError.OFFSET_NOT_AVAILABLE,
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.UNKNOWN_LEADER_EPOCH,
        KafkaError._NOENT,  # the client found no leader, be it that there is no topic
    }
)


# What a broker without the consumer group protocol of KIP-848 answers, and what the client says of one that is older.
NO_SUCH_PROTOCOL = frozenset({KafkaError.UNSUPPORTED_VERSION, KafkaError._UNSUPPORTED_FEATURE})


class Faults:
    """The last thing that librdkafka complained about in the background, for the message of our own error."""

    last = ""

    def note(self, error: KafkaError) -> None:
        self.last = error.str()


def failure(error: object, what: str, faults: Faults | None = None) -> ReplicationError:
    """Return our error for one of librdkafka's."""
    if not isinstance(error, KafkaError):
        return LogUnavailable(f"{what}: {error}")
    code, text = meaning(error), f"{what}: {error.str()}"
    if code in DENIED:
        return PermissionMissing(
            text, remedy="grant the Kafka user of this pipeline access to topics and groups of its name"
        )
    if code in ABSENT:
        return LogRewound(text)
    if code in (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_MSG_SIZE, KafkaError.RECORD_LIST_TOO_LARGE):
        return ValueUnsupported(text, remedy="raise the topic's max.message.bytes")
    return LogUnavailable(text + (f" ({faults.last})" if faults and faults.last else ""))


def meaning(error: KafkaError) -> int:
    """Return an error's code; of one that the client calls fatal, what it stands for, as far as that matters here.

    A consumer tells that in the text alone, which begins with the other code's own.
    """
    if error.code() != KafkaError._FATAL:
        return int(error.code())
    told = (code for code in NO_SUCH_PROTOCOL | DENIED if f"Fatal error: {KafkaError(code).str()}:" in error.str())
    return next(told, KafkaError._FATAL)


def code_of(error: KafkaException) -> int:
    cause = error.args[0]
    return int(cause.code()) if isinstance(cause, KafkaError) else 0


def name_of(partition: Partition) -> str:
    return f"{partition.topic}/{partition.number}"

"""What librdkafka's errors mean to us."""

from __future__ import annotations

import pytest
from confluent_kafka import KafkaError

from schemas.errors import LogUnavailable, PermissionMissing, ReplicationError
from transport.kafka.errors import failure, meaning

FATAL = "Fatal error: {0}: ConsumerGroupHeartbeat fatal error: {0}"


def fatal(code: int) -> KafkaError:
    """An error as a consumer gets it: the code is in the text alone."""
    return KafkaError(KafkaError._FATAL, FATAL.format(KafkaError(code).str()))


@pytest.mark.parametrize("code", [KafkaError.UNSUPPORTED_VERSION, KafkaError._UNSUPPORTED_FEATURE])
def test_a_fatal_error_of_a_broker_without_the_group_protocol_is_known(code: int) -> None:
    assert meaning(fatal(code)) == code


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (KafkaError.GROUP_AUTHORIZATION_FAILED, PermissionMissing),
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, PermissionMissing),
        (KafkaError.GROUP_MAX_SIZE_REACHED, LogUnavailable),
        (KafkaError.FENCED_INSTANCE_ID, LogUnavailable),
    ],
)
def test_any_other_fatal_error_is_what_it_stands_for(code: int, kind: type[ReplicationError]) -> None:
    error = failure(fatal(code), "cannot work")
    assert type(error) is kind and KafkaError(code).str() in str(error)
    assert (meaning(fatal(code)) == code) is (kind is PermissionMissing)

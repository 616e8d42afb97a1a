"""pika's exceptions as errors of regards_nb: what happened, at which queue, and what to do."""

from __future__ import annotations

import re
import ssl
from typing import TYPE_CHECKING

from pika import exceptions as pika_errors
from pika.adapters.utils.connection_workflow import (
    AMQPConnectorException,
    AMQPConnectorStackTimeout,
)

from regards_nb.errors import (
    BrokerAccessError,
    BrokerError,
    BrokerLoginError,
    BrokerUnreachableError,
    QueueInUseError,
    QueueNotFoundError,
    RegardsError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


#: What a connection of pika raises; that of a time limit is no AMQPError.
CONNECTION_ERRORS = (pika_errors.AMQPError, AMQPConnectorException, OSError)


class UnconfirmedRequestError(BrokerUnreachableError):
    """The connection broke before RabbitMQ confirmed a request for an order: it may have it."""


class QueueDownError(BrokerUnreachableError):
    """The queue exists, and does not serve at this moment: its node starts, or elects a leader."""


def broker_error(cause: BaseException, where: str, queue: str) -> BrokerError:  # noqa: C901, PLR0911 - a table
    """Translate the exception that ended a connection to the queue at *where*."""
    for error in _causes(cause):
        match error:
            case pika_errors.ProbableAuthenticationError() | pika_errors.AuthenticationError():
                return BrokerLoginError(
                    f"{where} refused the user name or the password. Check both; ask the REGARDS "
                    "administrator for a RabbitMQ account if you have none."
                )
            case pika_errors.ConnectionClosed() if error.reply_code == 530:
                return _not_allowed(error.reply_text, where)
            case pika_errors.ProbableAccessDeniedError():
                # pika's text has the reply of the broker in it
                return _not_allowed(str(error), where)
            case pika_errors.ChannelClosed():
                return _channel_error(error, where, queue)
            case pika_errors.ConsumerCancelled():
                return QueueNotFoundError(
                    f"RabbitMQ at {where} ended the consumer of the queue {queue!r}: the queue was "
                    "deleted, its node is down, or no message was acknowledged within the consumer "
                    "timeout. Reading goes on as soon as the queue is there again; ask the REGARDS "
                    "administrator."
                )
            case ssl.SSLError():
                return BrokerUnreachableError(
                    f"{where}: the TLS handshake failed ({error}). Check the host name and the "
                    "port, often 5671. If the certificate is of an authority of your own, give its "
                    "file: RegardsClient(ca_bundle=...), REGARDS_CA_BUNDLE or SSL_CERT_FILE."
                )
            case pika_errors.ConnectionClosed():
                reply = f"{error.reply_code} {error.reply_text}"
                # of a queue that elects a leader
                kind = QueueDownError if error.reply_code == 541 else BrokerUnreachableError
                return kind(f"{where} closed the connection: {reply}")
            case (
                pika_errors.ConnectionOpenAborted()
                | pika_errors.IncompatibleProtocolError()
                | AMQPConnectorStackTimeout()
            ):
                return BrokerUnreachableError(
                    f"{where} accepts the connection and does not answer as RabbitMQ does. Check "
                    "the port (5672, for amqps:// 5671), and whether the broker is overloaded."
                )
            case pika_errors.StreamLostError() | pika_errors.AMQPHeartbeatTimeout():
                return BrokerUnreachableError(f"the connection to {where} was lost: {error}")
    return BrokerUnreachableError(
        f"no broker answers at {where} ({_innermost(cause)}). Check host and port, the network or "
        "VPN, and whether the broker is running."
    )


def _not_allowed(text: str, where: str) -> BrokerError:
    """Translate code 530: RabbitMQ's text names the refused right or limit."""
    found = re.search(r"NOT_ALLOWED - [^\"]*", text)
    text = found[0] if found else text
    if "limit" in text:
        return BrokerAccessError(
            f"{where}: RabbitMQ refuses one more connection or channel ({text}). A tracker needs "
            "one connection with two channels. Stop other trackers and programs of this user, or "
            "ask the REGARDS administrator for a higher limit."
        )
    return BrokerAccessError(
        f"{where}: this user may not use the virtual host, or there is none of that name ({text}). "
        "Check the end of the URL; REGARDS uses regards.multitenant.manager. Ask the REGARDS "
        "administrator for the right to it."
    )


#: The most telling error of several addresses is the type of the whole.
_TELLING = (
    BrokerLoginError,
    BrokerAccessError,
    QueueNotFoundError,
    QueueInUseError,
    BrokerUnreachableError,
)


def combined_error(errors: Sequence[RegardsError]) -> RegardsError:
    """Return the only error, or one for all addresses of a cluster, a line for each."""
    if len(errors) == 1:
        return errors[0]
    lines = "\n".join(f"- {error}" for error in errors)
    kinds = [kind for kind in _TELLING if any(isinstance(error, kind) for error in errors)]
    kind = kinds[0] if kinds else BrokerError
    return kind(f"none of the {len(errors)} addresses of the broker can be used:\n{lines}")


def _channel_error(error: pika_errors.ChannelClosed, where: str, queue: str) -> BrokerError:
    code, text = error.reply_code, error.reply_text
    if code == 404 and "no queue" in text:
        return QueueNotFoundError(
            f"there is no queue {queue!r} at {where}. Check its name; the REGARDS administrator "
            "makes a queue for each reader and binds it to the order response exchange."
        )
    if code == 404 and "down or inaccessible" in text:
        return QueueDownError(
            f"{where} cannot serve the queue {queue!r} at this moment: {text}. After a restart it "
            "is not ready at once; if this stays, ask the REGARDS administrator."
        )
    if "exclusive" in text or code == 405:
        return QueueInUseError(
            f"another program reads the queue {queue!r} at {where} exclusively. Close it, or ask "
            "the REGARDS administrator for a queue of your own."
        )
    if code == 403:
        return BrokerAccessError(
            f"this user may not read the queue {queue!r} at {where}. Ask the REGARDS administrator "
            f"for the read permission on it ({text})."
        )
    return BrokerError(f"{where} closed the channel on queue {queue!r}: {code} {text}")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and the exceptions that pika put inside it, outermost first."""
    yield error
    inner = [*getattr(error, "exceptions", ()), getattr(error, "exception", None), *error.args]
    for value in inner:
        if isinstance(value, BaseException):
            yield from _causes(value)


def _innermost(error: BaseException) -> str:
    *_, last = _causes(error)
    return str(last) or type(last).__name__

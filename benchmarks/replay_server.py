"""A server with the part of AMQP that is needed to send messages as fast as a client reads.

RabbitMQ takes longer for a message than any client here, and hides the limit of the clients. This
server never waits for an acknowledgement. It prints its port, serves one client after the other,
and ends when its input ends.
"""

from __future__ import annotations

import argparse
import socket
import struct
import sys
import threading
from typing import Any

import messages
from pika import frame, spec

_PIECE = 500


class Connection:
    """The connection of one client."""

    def __init__(self, connection: socket.socket, count: int) -> None:
        self._socket = connection
        #: Keeps frames whole: methods are answered while another thread sends messages.
        self._sending = threading.Lock()
        self._count = count
        #: How many messages were sent. A client may cancel its consumer and go on with another.
        self._sent = 0
        self._cancelled: set[str] = set()
        self._answers: dict[type, Any] = {
            spec.Connection.StartOk: lambda _: spec.Connection.Tune(2047, 131072, 0),
            spec.Connection.TuneOk: lambda _: None,
            spec.Connection.Open: lambda _: spec.Connection.OpenOk(),
            spec.Connection.Close: lambda _: spec.Connection.CloseOk(),
            spec.Channel.Open: lambda _: spec.Channel.OpenOk(),
            spec.Channel.Close: lambda _: spec.Channel.CloseOk(),
            spec.Channel.CloseOk: lambda _: None,
            spec.Queue.Declare: lambda asked: spec.Queue.DeclareOk(asked.queue, count, 0),
            spec.Basic.Qos: lambda _: spec.Basic.QosOk(),
            spec.Confirm.Select: lambda _: spec.Confirm.SelectOk(),
            spec.Basic.Ack: lambda _: None,
            spec.Basic.Reject: lambda _: None,
            spec.Basic.Cancel: self._cancel,
            spec.Basic.Consume: _consume,
        }

    def run(self) -> None:
        """Answer methods until the client disconnects."""
        with self._socket:
            buffer = bytearray()
            while len(buffer) < 8:
                buffer += self._socket.recv(8 - len(buffer))
            buffer.clear()
            about = {"product": "replay", "capabilities": {"publisher_confirms": True}}
            self._send(0, spec.Connection.Start(0, 9, about, "PLAIN", "en_US"))
            while data := self._socket.recv(1 << 16):
                buffer += data
                while True:
                    used, received = frame.decode_frame(bytes(buffer))
                    if received is None:
                        break
                    del buffer[:used]
                    if isinstance(received, frame.Method):
                        self._answer(received)

    def _answer(self, received: frame.Method) -> None:
        asked = received.method
        answer = self._answers[type(asked)](asked)
        if answer is not None:
            self._send(received.channel_number, answer)
        if isinstance(answer, spec.Basic.ConsumeOk):
            # This thread reads the acknowledgements meanwhile, so that no client blocks.
            sending = (received.channel_number, answer.consumer_tag)
            threading.Thread(target=self._send_messages, args=sending, daemon=True).start()

    def _send(self, channel: int, method: Any) -> None:
        with self._sending:
            self._socket.sendall(frame.Method(channel, method).marshal())

    def _cancel(self, asked: Any) -> Any:
        self._cancelled.add(asked.consumer_tag)
        return spec.Basic.CancelOk(asked.consumer_tag)

    def _send_messages(self, channel: int, consumer_tag: str) -> None:
        try:
            while True:
                with self._sending:
                    first, end = self._sent, min(self._sent + _PIECE, self._count)
                    if first == end or consumer_tag in self._cancelled:
                        return
                    self._socket.sendall(_deliveries(channel, consumer_tag, range(first, end)))
                    self._sent = end
        except OSError:  # the client has disconnected
            return


def _consume(asked: Any) -> Any:
    if "x-stream-offset" in (asked.arguments or {}):
        # RabbitMQ's answer for a classic queue and an offset.
        return spec.Channel.Close(
            406, "PRECONDITION_FAILED - invalid arg 'x-stream-offset'", 60, 20
        )
    return spec.Basic.ConsumeOk(asked.consumer_tag)


def _deliveries(channel: int, consumer_tag: str, numbers: range) -> bytes:
    method = spec.Basic.Deliver(consumer_tag, 0, redelivered=False, exchange="x", routing_key="")
    deliver = frame.Method(channel, method).marshal()
    at = deliver.rindex(struct.pack(">QB", 0, 0))
    before, after = deliver[:at], deliver[at + 8 :]
    heads: dict[int, bytes] = {}
    parts = []
    for number in numbers:
        body = BODIES[number]
        if len(body) not in heads:
            properties = messages.properties(number)
            heads[len(body)] = frame.Header(channel, len(body), properties).marshal()
        parts += [before, struct.pack(">Q", number + 1), after, heads[len(body)]]
        parts += [struct.pack(">BHI", 3, channel, len(body)), body, b"\xce"]
    return b"".join(parts)


BODIES: list[bytes] = []


def main() -> None:
    """Serve until the input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int)
    count = parser.parse_args().count
    BODIES.extend(map(messages.body, range(count)))
    with socket.create_server(("127.0.0.1", 0)) as server:
        print(server.getsockname()[1], flush=True)
        accepting = threading.Thread(target=_accept, args=(server, count), daemon=True)
        accepting.start()
        sys.stdin.read()


def _accept(server: socket.socket, count: int) -> None:
    while True:
        connection, _ = server.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=Connection(connection, count).run, daemon=True).start()


if __name__ == "__main__":
    main()

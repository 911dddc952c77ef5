"""Channels and server credentials whose identity can be renewed while calls are in flight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import grpc
import grpc.aio

from wire.identity import Identity
from wire.renewing import RenewingChannel

Options = Sequence[tuple[str, Any]]

CLIENT_MESSAGE_MAX_BYTES: Final = 8 << 20
SERVER_MESSAGE_MAX_BYTES: Final = 4 << 20

SERVER_OPTIONS: Final[Options] = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_concurrent_streams", 2000),
    ("grpc.max_receive_message_length", SERVER_MESSAGE_MAX_BYTES),
    ("grpc.max_send_message_length", CLIENT_MESSAGE_MAX_BYTES),
    ("grpc.max_metadata_size", 8192),
    ("grpc.absolute_max_metadata_size", 16384),
    # A client that pings more often than this is cut off; ours ping every 30 s.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 2),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Without this one a frozen peer is not noticed, whatever the line above says.
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.max_connection_idle_ms", 300_000),
    # An old connection carries an old certificate. No grace limit: its streams survive.
    ("grpc.max_connection_age_ms", 1_800_000),
    ("grpc.server_handshake_timeout_ms", 5_000),
    ("grpc.max_allowed_incoming_connections", 1000),
)

CHANNEL_OPTIONS: Final[Options] = (
    ("grpc.max_receive_message_length", CLIENT_MESSAGE_MAX_BYTES),
    ("grpc.max_send_message_length", SERVER_MESSAGE_MAX_BYTES),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 0),
    # A successor binds the same socket within a second: do not sit out a long backoff.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)


def open_channel(
    target: str, identity: Callable[[], Identity], *, authority: str, options: Options = ()
) -> grpc.aio.Channel:
    """A channel with mTLS; with a token in its identity, each call carries it.

    It follows renewals: new calls use the new certificate, calls in flight end on the old connection.
    """
    names = (("grpc.ssl_target_name_override", authority), ("grpc.default_authority", authority))
    merged = _merged(CHANNEL_OPTIONS, names, options)

    def open_with(current: Identity) -> grpc.aio.Channel:
        return grpc.aio.secure_channel(target, _credentials(current, identity), options=merged)

    return RenewingChannel(identity, open_with)


def open_control_channel(target: str, options: Options = ()) -> grpc.aio.Channel:
    """A channel without TLS, for unix sockets that the file system protects."""
    if not target.startswith(("unix:", "unix-abstract:")):
        raise ValueError(f"cannot open a control channel to '{target}': only unix sockets go without TLS")
    merged = _merged(CHANNEL_OPTIONS, (("grpc.default_authority", "localhost"),), options)
    return grpc.aio.insecure_channel(target, options=merged)


def _merged(*layers: Options) -> Options:
    """Later layers win; grpc itself would take the first of two settings with one name."""
    return tuple({name: value for layer in layers for name, value in layer}.items())


def server_credentials(identity: Callable[[], Identity]) -> grpc.ServerCredentials:
    """Credentials that require a client certificate and show the present identity to each new connection."""
    first = identity()
    shown: list[Identity] = [first]

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        current = identity()
        if _same_certificates(current, shown[0]):
            return None
        shown[0] = current
        return _server_configuration(current)

    return grpc.dynamic_ssl_server_credentials(
        _server_configuration(first),
        fetch,  # type: ignore[arg-type]  # None means: as before
        require_client_authentication=True,
    )


def _server_configuration(identity: Identity) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(identity.key_pem, identity.certificate_pem)], root_certificates=identity.ca_pem
    )


def _same_certificates(one: Identity, other: Identity) -> bool:
    return one is other or (one.certificate_pem == other.certificate_pem and one.ca_pem == other.ca_pem)


def _credentials(pinned: Identity, identity: Callable[[], Identity]) -> grpc.ChannelCredentials:
    tls = grpc.ssl_channel_credentials(pinned.ca_pem, pinned.key_pem, pinned.certificate_pem)
    if not pinned.token:
        return tls
    bearer = grpc.metadata_call_credentials(_Bearer(pinned, identity), name="bearer")
    return grpc.composite_channel_credentials(tls, bearer)


class _Bearer(grpc.AuthMetadataPlugin):
    """The newest token that is bound to the certificate of this connection."""

    def __init__(self, pinned: Identity, identity: Callable[[], Identity]) -> None:
        self._pinned = pinned
        self._identity = identity

    def __call__(self, context: grpc.AuthMetadataContext, callback: grpc.AuthMetadataPluginCallback) -> None:
        current = self._identity()
        # A token of a renewed identity is bound to a certificate that this connection does not show.
        if current.certificate_pem == self._pinned.certificate_pem:
            self._pinned = current
        callback((("authorization", f"Bearer {self._pinned.token}"),), None)

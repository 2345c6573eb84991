"""Sounds when another aioquic is installed: names every private attribute that the adapter relies on.

When it fails, read the changes of aioquic since the pinned version, revise `ztna/quic/adapter.py`, then this.
"""

from __future__ import annotations

import ast
import inspect
import runpy
from pathlib import Path

import aioquic
import pytest
from aioquic import tls
from aioquic.quic.connection import QuicConnection
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.recovery import QuicPacketPacer, QuicPacketRecovery, QuicPacketSpace
from aioquic.quic.stream import QuicStream, QuicStreamReceiver, QuicStreamSender

from tests.unit.quic.pair import Pair
from ztna.quic import adapter

CONNECTION_ATTRIBUTES = {
    "_ack_delay", "_close_at", "_close_event", "_crypto_streams", "_cryptos", "_datagrams_pending",
    "_handshake_complete", "_peer_cid_sequence_numbers",
    "_handshake_confirmed", "_host_cids", "_is_client", "_local_max_data", "_local_max_streams_bidi",
    "_local_max_streams_uni", "_local_next_stream_id_bidi", "_loss", "_max_datagram_size", "_network_paths",
    "_pacing_at", "_packet_number", "_peer_cid", "_probe_pending", "_remote_max_data",
    "_remote_max_data_used", "_remote_max_datagram_frame_size", "_remote_max_idle_timeout",
    "_remote_max_streams_bidi", "_retire_connection_ids", "_spaces",
    "_state", "_streams", "_streams_blocked_bidi", "_streams_queue",
}  # fmt: skip
RECOVERY_ATTRIBUTES = {
    "_pacer", "_pto_count", "_rtt_initialized", "_rtt_latest", "_rtt_min", "_rtt_smoothed",
    "_rtt_variance",
}  # fmt: skip
SENDER_ATTRIBUTES = {
    "_buffer", "_buffer_fin", "_buffer_start", "_buffer_stop", "_pending", "_pending_eof",
    "_reset_error_code",
}  # fmt: skip
RECEIVER_ATTRIBUTES = {"_buffer", "_buffer_start", "_final_size", "_ranges"}
TLS_ATTRIBUTES = {
    "_peer_certificate", "_peer_certificate_chain", "_receive_buffer", "_request_client_certificate",
    "_supported_groups",
}  # fmt: skip
BUILDER_ATTRIBUTES = {"_buffer", "_packet", "_packet_start"}
PACER_ATTRIBUTES = {"_max_datagram_size", "bucket_max", "bucket_time", "packet_time"}
OVERRIDDEN = [
    (QuicConnection, "_handle_connection_close_frame", "self context frame_type buf"),
    (QuicConnection, "_handle_max_data_frame", "self context frame_type buf"),
    (QuicConnection, "_handle_max_stream_data_frame", "self context frame_type buf"),
    (QuicConnection, "_initialize", "self peer_cid"),
    (QuicConnection, "_on_ack_delivery", "self delivery space highest_acked"),
    (QuicConnection, "_on_connection_limit_delivery", "self delivery limit"),
    (QuicConnection, "_on_max_stream_data_delivery", "self delivery stream"),
    (QuicConnection, "_receive_version_negotiation_packet", "self header now"),
    (QuicConnection, "_unblock_streams", "self is_unidirectional"),
    (QuicConnection, "_write_application", "self builder network_path now"),
    (QuicConnection, "_write_connection_limits", "self builder space"),
    (QuicConnection, "_write_stream_limits", "self builder space stream"),
    (QuicPacketRecovery, "_detect_loss", "self now space"),
    (QuicPacketRecovery, "on_packet_sent", "self packet space"),
    (QuicPacketRecovery, "_on_packets_lost", "self congestion_event now packets persistent_congestion space"),
    (QuicPacketPacer, "update_rate", "self congestion_window smoothed_rtt"),
    (QuicPacketPacer, "update_after_send", "self now"),
    (CryptoPair, "_update_key", "self trigger"),
    (CryptoPair, "decrypt_packet", "self packet encrypted_offset expected_packet_number"),
    (QuicStreamSender, "on_data_delivery", "self delivery start stop fin"),
    (QuicStreamSender, "on_reset_delivery", "self delivery"),
    (QuicStreamReceiver, "handle_frame", "self frame"),
    (QuicStreamReceiver, "on_stop_sending_delivery", "self delivery"),
    (tls.Context, "handle_message", "self input_data output_buf"),
    (tls.Context, "_client_handle_certificate_verify", "self input_buf"),
    (tls.Context, "_server_handle_certificate", "self input_buf"),
    (tls.Context, "_server_handle_certificate_verify", "self input_buf"),
]


def test_version_is_the_one_the_adapter_was_written_for() -> None:
    assert aioquic.__version__ == adapter.SUPPORTED_VERSION == "1.7.2"


def test_another_version_is_refused_with_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aioquic, "__version__", "1.8.0")
    with pytest.raises(ImportError, match=r"1\.7\.2, found 1\.8\.0"):
        runpy.run_path(inspect.getfile(adapter))


@pytest.mark.parametrize(("owner", "name", "parameters"), OVERRIDDEN, ids=lambda value: str(value)[:60])
def test_overridden_method_keeps_its_signature(owner: type, name: str, parameters: str) -> None:
    assert list(inspect.signature(getattr(owner, name)).parameters) == parameters.split()


def test_private_attributes_exist() -> None:
    engine = Pair().established().client.connection._engine
    stream = QuicStream(stream_id=0)
    for instance, names in (
        (engine, CONNECTION_ATTRIBUTES),
        (engine._loss, RECOVERY_ATTRIBUTES),
        (engine._builder, BUILDER_ATTRIBUTES),
        (engine._loss._pacer, PACER_ATTRIBUTES),
        (stream.sender, SENDER_ATTRIBUTES),
        (stream.receiver, RECEIVER_ATTRIBUTES),
        (engine.tls, TLS_ATTRIBUTES),
        (QuicPacketSpace(), {"received_packets", "largest_acked_packet", "loss_time", "sent_packets"}),
    ):
        assert {name for name in names if not hasattr(instance, name)} == set()


def test_every_private_attribute_of_the_adapter_is_named_here() -> None:
    source = Path(inspect.getfile(adapter)).read_text()
    tree = ast.parse(source)
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
    }
    own = {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name.startswith("_")
    }
    # The others are attributes of our own classes, which aioquic does not have.
    library = "\n".join(
        Path(inspect.getfile(module)).read_text()
        for module in map(
            inspect.getmodule, (QuicConnection, QuicPacketRecovery, QuicStream, CryptoPair, tls.Context)
        )
        if module is not None
    )
    foreign = {name for name in used - own if f"self.{name}" in library}
    named = (
        CONNECTION_ATTRIBUTES
        | RECOVERY_ATTRIBUTES
        | BUILDER_ATTRIBUTES
        | PACER_ATTRIBUTES
        | SENDER_ATTRIBUTES
        | RECEIVER_ATTRIBUTES
        | TLS_ATTRIBUTES
    ) | {name for _, name, _ in OVERRIDDEN}
    assert foreign - named == set()


def test_no_other_module_looks_inside() -> None:
    package = Path(inspect.getfile(adapter)).parent
    private = CONNECTION_ATTRIBUTES | RECOVERY_ATTRIBUTES | SENDER_ATTRIBUTES | TLS_ATTRIBUTES
    for path in sorted(package.glob("*.py")):
        if path.name == "adapter.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and not (
                isinstance(node.value, ast.Name) and node.value.id == "self"
            ):
                assert node.attr not in private, f"{path.name}: {node.attr}"

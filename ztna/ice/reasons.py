"""Why a session has no direct path, in sentences for people; the words are those of `HolePunchChanged`."""

from __future__ import annotations

from typing import Final

_SENTENCES: Final = {
    "all_pairs_failed": "No pair of addresses of the two sides let packets through; it is tried again.",
    "both_mappings_vary": "Both sides are behind NATs that give each destination another address, so neither "
    "can tell the other where to send.",
    "checks_never_began": "The two sides knew of each other, and had no addresses that could be tried.",
    "mapping_varies_and_peer_filters_ports": "The NAT of one side gives each destination another port, and "
    "that of the other side lets in only ports it has sent to.",
    "network_changed": "The addresses of this node changed; the search begins anew.",
    "mtu": "Packets of the size that a session needs do not pass between the two sides directly.",
    "no_answer": "No check of any pair of addresses of the two sides was answered; it is tried again.",
    "no_common_family": "One side has IPv4 alone and the other IPv6 alone, so only a relay can join them.",
    "no_pairs": "One side has no address that could be tried.",
    "no_direct_path_yet": "No check was answered in time; the checks go on, and are repeated.",
    "no_path": "Neither a relay nor a direct path reaches the other side.",
    "operator": "An operator asked for a new search.",
    "peer_relay_only": "The other side is configured to use the relay alone (path.policy: relay_only).",
    "policy_relay_only": "This node is configured to use the relay alone (path.policy: relay_only).",
    "relay_back": "The relay carries the session again; the search begins anew.",
    "retry": "The search is repeated, as it was without success before.",
    "signaling_access_denied": "The intermediate does not allow this session.",
    "signaling_not_a_party": "The intermediate says that the session is between others.",
    "signaling_rate_limited": "The other side, or the intermediate, was asked too often; it is tried again.",
    "signaling_session_not_found": "The intermediate does not know this session.",
    "signaling_timeout": "The other side did not answer with its addresses in time; it is asked again.",
    "udp_blocked": "A firewall on one side lets no UDP through.",
}


WORDS: Final = frozenset(_SENTENCES)
"""All that docs/troubleshooting.md explains."""


def sentence(reason: str) -> str:
    """A sentence for a reason; one of another actor, or of the peer, becomes words."""
    if not reason:
        return ""
    if reason in _SENTENCES:
        return _SENTENCES[reason]
    return f"{reason.replace('_', ' ').capitalize()}."

"""The states of a search for a direct path, and every transition between them."""

from __future__ import annotations

from enum import Enum
from typing import Final

from ztna.ice.timing import HolePunchState


class Step(Enum):
    """What moves the search from one state to another."""

    GATHER = "gather"
    EXCHANGE = "exchange"
    ANSWERED = "answered"
    BEGAN = "began"
    NOMINATED = "nominated"
    KEPT = "kept"
    GAVE_UP = "gave_up"
    FAIL = "fail"
    RELAY_BACK = "relay_back"


_S = HolePunchState

TRANSITIONS: Final[dict[tuple[HolePunchState, Step], HolePunchState]] = {
    (_S.IDLE, Step.GATHER): _S.GATHERING,
    (_S.IDLE, Step.EXCHANGE): _S.SIGNALING,
    (_S.IDLE, Step.GAVE_UP): _S.FALLBACK_RELAY,
    (_S.GATHERING, Step.EXCHANGE): _S.SIGNALING,
    (_S.GATHERING, Step.GAVE_UP): _S.FALLBACK_RELAY,
    (_S.GATHERING, Step.FAIL): _S.FAILED,
    (_S.SIGNALING, Step.EXCHANGE): _S.SIGNALING,
    (_S.SIGNALING, Step.ANSWERED): _S.WAITING_TO_START,
    (_S.SIGNALING, Step.NOMINATED): _S.CONNECTED,
    (_S.SIGNALING, Step.KEPT): _S.CONNECTED,
    (_S.SIGNALING, Step.GAVE_UP): _S.FALLBACK_RELAY,
    (_S.SIGNALING, Step.FAIL): _S.FAILED,
    (_S.WAITING_TO_START, Step.EXCHANGE): _S.SIGNALING,
    (_S.WAITING_TO_START, Step.BEGAN): _S.CHECKING,
    (_S.WAITING_TO_START, Step.NOMINATED): _S.CONNECTED,
    (_S.WAITING_TO_START, Step.KEPT): _S.CONNECTED,
    (_S.WAITING_TO_START, Step.GAVE_UP): _S.FALLBACK_RELAY,
    (_S.WAITING_TO_START, Step.FAIL): _S.FAILED,
    (_S.CHECKING, Step.EXCHANGE): _S.SIGNALING,
    (_S.CHECKING, Step.NOMINATED): _S.CONNECTED,
    (_S.CHECKING, Step.KEPT): _S.CONNECTED,
    (_S.CHECKING, Step.GAVE_UP): _S.FALLBACK_RELAY,
    (_S.CHECKING, Step.FAIL): _S.FAILED,
    (_S.CONNECTED, Step.EXCHANGE): _S.SIGNALING,
    (_S.CONNECTED, Step.ANSWERED): _S.WAITING_TO_START,
    (_S.CONNECTED, Step.NOMINATED): _S.CONNECTED,
    (_S.CONNECTED, Step.GAVE_UP): _S.FALLBACK_RELAY,
    (_S.CONNECTED, Step.FAIL): _S.FAILED,
    (_S.FALLBACK_RELAY, Step.EXCHANGE): _S.SIGNALING,
    (_S.FALLBACK_RELAY, Step.ANSWERED): _S.WAITING_TO_START,
    (_S.FALLBACK_RELAY, Step.NOMINATED): _S.CONNECTED,
    (_S.FALLBACK_RELAY, Step.FAIL): _S.FAILED,
    (_S.FAILED, Step.EXCHANGE): _S.SIGNALING,
    (_S.FAILED, Step.NOMINATED): _S.CONNECTED,
    (_S.FAILED, Step.RELAY_BACK): _S.FALLBACK_RELAY,
}
"""Every transition there is; anything else is a mistake of ours, whatever the peer does."""

"""Hypothesis strategies for STUN values."""

from __future__ import annotations

import ipaddress

from hypothesis import strategies as st

from ztna.address import TransportAddress
from ztna.stun import attributes as a
from ztna.stun.message import Message, MessageClass

ports = st.integers(0, 65535)
ipv4 = st.integers(0, 2**32 - 1).map(lambda number: str(ipaddress.IPv4Address(number)))
ipv6 = st.integers(0, 2**128 - 1).map(lambda number: str(ipaddress.IPv6Address(number)))
addresses = st.builds(TransportAddress.of, st.one_of(ipv4, ipv6), ports)
transaction_ids = st.binary(min_size=12, max_size=12)
texts = st.text(max_size=20)
types = st.integers(0, 0xFFFF)

# Every attribute that may be given to `build`, by class.
GIVEN: dict[type[a.Attribute], st.SearchStrategy[a.Attribute]] = {
    a.MappedAddress: st.builds(a.MappedAddress, addresses),
    a.ChangeRequest: st.builds(a.ChangeRequest, st.booleans(), st.booleans()),
    a.SourceAddress: st.builds(a.SourceAddress, addresses),
    a.ChangedAddress: st.builds(a.ChangedAddress, addresses),
    a.Username: st.builds(a.Username, texts),
    a.ErrorCode: st.builds(a.ErrorCode, st.integers(300, 699), texts),
    a.UnknownAttributes: st.builds(a.UnknownAttributes, st.lists(types, max_size=4).map(tuple)),
    a.XorMappedAddress: st.builds(a.XorMappedAddress, addresses),
    a.Priority: st.builds(a.Priority, st.integers(0, 2**32 - 1)),
    a.UseCandidate: st.just(a.UseCandidate()),
    a.Software: st.builds(a.Software, texts),
    a.IceControlled: st.builds(a.IceControlled, st.integers(0, 2**64 - 1)),
    a.IceControlling: st.builds(a.IceControlling, st.integers(0, 2**64 - 1)),
    a.ResponseOrigin: st.builds(a.ResponseOrigin, addresses),
    a.OtherAddress: st.builds(a.OtherAddress, addresses),
    a.Padding: st.builds(a.Padding, st.integers(0, 64)),
}
given_attributes = st.lists(
    st.sampled_from(list(GIVEN)), unique_by=lambda item: item.TYPE, max_size=5
).flatmap(lambda classes: st.tuples(*(GIVEN[item] for item in classes)))

messages = st.builds(
    Message, st.integers(0, 0xFFF), st.sampled_from(MessageClass), transaction_ids, given_attributes
)

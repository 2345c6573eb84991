"""Cuts a scenario that breaks something down to the little that breaks it still."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final, TypeVar

from tests.simnet.link import LinkConfig
from tools.simulate.run import Outcome, run
from tools.simulate.scenario import Scenario, Site

T = TypeVar("T")

MAX_SECONDS: Final = 90.0
"""Real time: somebody waits for the answer."""


def minimise(
    scenario: Scenario,
    outcome: Outcome,
    *,
    attempt: Callable[[Scenario], Outcome] = run,
    limit_s: float = MAX_SECONDS,
) -> Scenario:
    """The smallest scenario found that breaks the same rule as `outcome` of `scenario`.

    Each round takes single things away, the largest first, and keeps what still breaks; the rounds end when
    one changes nothing, or after `limit_s` seconds.
    """
    end = time.monotonic() + limit_s

    def still_breaks(candidate: Scenario) -> bool:
        return attempt(candidate).kind == outcome.kind

    is_smaller = True
    while is_smaller:
        is_smaller = False
        candidates = _smaller(scenario)
        for change in candidates:
            if time.monotonic() >= end:
                return scenario
            candidate = change(scenario)
            if candidate is not None and candidate != scenario and still_breaks(candidate):
                scenario = candidate
                is_smaller = True
    return scenario


Change = Callable[[Scenario], Scenario | None]


def _smaller(scenario: Scenario) -> Iterator[Change]:
    """Changes to try; each is applied to whatever is left by then."""
    yield lambda each: replace(each, faults=())
    half = len(scenario.faults) // 2
    if half > 1:
        yield lambda each: replace(each, faults=each.faults[half:])
        yield lambda each: replace(each, faults=each.faults[:half])
    for fault in reversed(scenario.faults):
        yield lambda each, fault=fault: replace(each, faults=_without(each.faults, fault))  # type: ignore[misc]
    yield lambda each: replace(each, work=())
    for work in reversed(scenario.work):
        yield lambda each, work=work: replace(each, work=_without(each.work, work))  # type: ignore[misc]
    for name in reversed(scenario.sites):
        yield lambda each, name=name: _without_node(each, name)  # type: ignore[misc]
    for name in scenario.intermediates[1:]:
        yield lambda each, name=name: _without_node(each, name)  # type: ignore[misc]
    yield lambda each: replace(each, link=LinkConfig(latency_s=0.02))
    yield lambda each: replace(each, link=LinkConfig(latency_s=each.link.latency_s))
    for name in scenario.sites:
        yield lambda each, name=name: _with_plain_site(each, name)  # type: ignore[misc]
    yield lambda each: replace(each, denied=())
    for narrow in scenario.narrow:
        yield lambda each, narrow=narrow: replace(each, narrow=_without(each.narrow, narrow))  # type: ignore[misc]
    yield lambda each: replace(each, has_grpc=False)


def _without(items: tuple[T, ...], item: T) -> tuple[T, ...]:
    return tuple(each for each in items if each is not item)


def _without_node(scenario: Scenario, name: str) -> Scenario | None:
    agents = {each: site for each, site in scenario.agents.items() if each != name}
    connectors = {each: site for each, site in scenario.connectors.items() if each != name}
    intermediates = tuple(each for each in scenario.intermediates if each != name)
    if not agents or not connectors or any(site.with_node == name for site in agents.values()):
        return None
    return replace(
        scenario,
        agents=agents,
        connectors=connectors,
        intermediates=intermediates,
        work=tuple(each for each in scenario.work if name not in {each.agent, each.connector}),
        faults=tuple(each for each in scenario.faults if name not in {each.target, each.other}),
        denied=tuple(pair for pair in scenario.denied if name not in pair),
        narrow=tuple(each for each in scenario.narrow if name not in {each.one, each.other}),
    )


def _with_plain_site(scenario: Scenario, name: str) -> Scenario | None:
    plain = Site()
    if name not in scenario.sites:
        return None
    if name in scenario.agents:
        return replace(scenario, agents={**scenario.agents, name: plain})
    return replace(scenario, connectors={**scenario.connectors, name: plain})

"""Owns the probes of backends; tells the intermediates which services are offered: configured, and not ill.

Probing is optional and per service. What agents have open with a backend that fails its probes goes on: only
new sessions are led elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from actors import translate
from actors.base import Concern, Context
from actors.health_probe import HealthProbe, start_probe
from ztna.service import health
from ztna.service.health import HealthMonitor, Schedule, Verdict
from ztna.settings import ConnectorService, HealthCheck
from ztna.v1 import reload_pb2, service_health_pb2, signaling_client_pb2


@dataclass(slots=True)
class _Checked:
    service: ConnectorService
    monitor: HealthMonitor
    probe: HealthProbe | None = None


class ServiceHealth(Concern):
    """Drives one `HealthMonitor` per service that is to be checked."""

    name = "service_health"
    handlers: ClassVar = {
        reload_pb2.ConfigurationReloaded: "configuration_reloaded",
        signaling_client_pb2.Attached: "attached",
    }
    emits = (signaling_client_pb2.OfferServices, service_health_pb2.ServiceHealthChanged)

    def __init__(
        self,
        context: Context,
        services: Callable[[], Sequence[ConnectorService]],
        intermediate_ids: Sequence[str],
    ) -> None:
        """`services` gives the present ones."""
        super().__init__(context)
        self._configured = services
        self._intermediate_ids = tuple(intermediate_ids)
        self._services: dict[str, ConnectorService] = {}
        self._checked: dict[str, _Checked] = {}

    def on_start(self) -> None:
        """Begin to probe."""
        self._adopt()

    def on_stop(self) -> None:
        """Give up what is under way."""
        for checked in self._checked.values():
            self._abandon(checked)

    def configuration_reloaded(self, _message: reload_pb2.ConfigurationReloaded) -> None:
        """Offer and probe what is configured now."""
        self._adopt()
        self._offer(self._intermediate_ids)

    def attached(self, message: signaling_client_pb2.Attached) -> None:
        """An attachment may begin with all services, if whoever carries it has just been restarted."""
        if not all(checked.monitor.is_offered for checked in self._checked.values()):
            self._offer((message.intermediate_id,))

    def handle_timeout(self, now: float) -> None:
        """Probe, or give probes up."""
        for checked in list(self._checked.values()):
            checked.monitor.handle_timeout(now)
            self._act(checked)

    def next_deadline(self) -> float | None:
        """The earliest of all monitors'."""
        deadlines = (checked.monitor.next_deadline() for checked in self._checked.values())
        return min((each for each in deadlines if each is not None), default=None)

    def probe_ended(self, service: str, number: int, error: str) -> None:
        """A probe was answered (no error), or failed; told by the probe."""
        checked = self._checked.get(service)
        if checked is None:
            return
        checked.probe = None
        if error:
            checked.monitor.handle_failure(number, error, self.now)
        else:
            checked.monitor.handle_success(number, self.now)
        self._act(checked)

    def enter(self, function: Callable[..., object], *args: object) -> None:
        """Run a socket's callback as a message of this actor."""
        self.host.enter(function, *args)

    def _adopt(self) -> None:
        self._services = {each.id: each for each in self._configured()}
        former, self._checked = self._checked, {}
        for service in self._services.values():
            known = former.pop(service.id, None)
            if known is not None and _checks_the_same(known.service, service):
                known.service = service
                self._checked[service.id] = known
                continue
            if known is not None:
                self._abandon(known)
            if service.health is not None:
                monitor = HealthMonitor(_schedule(service.health), self.io.random, self.now)
                self._checked[service.id] = _Checked(service, monitor)
        for gone in former.values():
            self._abandon(gone)

    def _act(self, checked: _Checked) -> None:
        for effect in checked.monitor.drain():
            match effect:
                case health.Probe(number):
                    checked.probe = start_probe(self, checked.service, number)
                case health.Abandon():
                    self._abandon(checked)
                case health.VerdictChanged(verdict, detail):
                    self._verdict_changed(checked.service, verdict, detail)

    def _abandon(self, checked: _Checked) -> None:
        if checked.probe is not None:
            checked.probe.cancel()
            checked.probe = None

    def _verdict_changed(self, service: ConnectorService, verdict: Verdict, detail: str) -> None:
        log = self.log.warning if verdict is Verdict.UNHEALTHY else self.log.info
        log("service_health.changed", service=service.id, health=verdict.value, detail=detail)
        self.emit(
            service_health_pb2.ServiceHealthChanged(
                service=service.id, is_healthy=verdict is Verdict.HEALTHY, detail=detail
            )
        )
        self._offer(self._intermediate_ids)

    def _offer(self, intermediate_ids: Sequence[str]) -> None:
        offered = [
            signaling_client_pb2.OfferServices.Service(
                service=service.id, protocol=translate.protocol_to_proto(service.protocol)
            )
            for service in self._services.values()
            if service.id not in self._checked or self._checked[service.id].monitor.is_offered
        ]
        for name in intermediate_ids:
            self.emit(signaling_client_pb2.OfferServices(intermediate_id=name, services=offered))


def _schedule(check: HealthCheck) -> Schedule:
    return Schedule(check.interval_s, check.timeout_s, check.unhealthy_after, check.healthy_after)


def _checks_the_same(former: ConnectorService, service: ConnectorService) -> bool:
    return (former.health, former.backend) == (service.health, service.backend)

from __future__ import annotations

import pytest

from ztna.path.manager import MAX_RELAY_PATHS, PathKind, PathManager, PathSelected, RelayPath

A = RelayPath("a", 1200)
B = RelayPath("b", 1200)


@pytest.mark.parametrize(
    ("news", "selected"),
    [
        pytest.param(["+a"], [(A, False)], id="first-path-is-fresh"),
        pytest.param(["+a", "+b"], [(A, False), (B, True)], id="latest-wins"),
        pytest.param(["+a", "-a", "+a"], [(A, False), (None, False), (A, True)], id="outage-is-resumed"),
        pytest.param(["+a", "+a"], [(A, False), (A, True)], id="fresh-channel-on-the-same-leg-is-resumed"),
        pytest.param(["+a", "+b", "-b"], [(A, False), (B, True), (A, True)], id="falls-back-to-the-older"),
        pytest.param(
            ["+a", "+b", "-a"], [(A, False), (B, True)], id="loss-of-an-unused-path-changes-nothing"
        ),
        pytest.param(["-a"], [], id="loss-of-an-unknown-path-changes-nothing"),
    ],
)
def test_latest_relay_path_is_selected(
    news: list[str], selected: list[tuple[RelayPath | None, bool]]
) -> None:
    manager = PathManager()
    effects = []
    for each in news:
        if each[0] == "+":
            manager.handle_relay_up(each[1:], 1200)
        else:
            manager.handle_relay_down(each[1:])
        effects += manager.drain()
    assert effects == [PathSelected(relay, is_resumed) for relay, is_resumed in selected]
    assert manager.drain() == []
    last = effects[-1] if effects else PathSelected(None, is_resumed=False)
    assert manager.selected == last.relay
    assert last.kind is (PathKind.NONE if last.relay is None else PathKind.RELAY)


def test_oldest_of_too_many_paths_is_forgotten() -> None:
    manager = PathManager()
    for number in range(MAX_RELAY_PATHS + 1):
        manager.handle_relay_up(str(number), 1200)
    for number in range(MAX_RELAY_PATHS, 0, -1):
        assert manager.selected == RelayPath(str(number), 1200)
        manager.handle_relay_down(str(number))
    assert manager.selected is None

"""The constant routes serve, hold still while others are measured, come back, and leave nothing behind."""

from __future__ import annotations

import http.client
from pathlib import Path

import psutil
import pytest
import uvloop

from loadtests import traffic
from loadtests.generator import run
from loadtests.peers import constant
from loadtests.stacks import Stack, taking_turns


def answer(stack: Stack, timeout_s: float = 5.0) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", stack.port, timeout=timeout_s)
    try:
        connection.request("GET", constant.PATH)
        response = connection.getresponse()
        assert response.status == 200
        return response.read()
    finally:
        connection.close()


@pytest.mark.parametrize(
    "name", ["listener", "gateway", pytest.param("serve", marks=[pytest.mark.ray, pytest.mark.slow])]
)
def test_a_constant_route_serves_under_load_and_ends_with_every_process_of_it(name: str, tmp_path: Path) -> None:
    with constant.running(name, tmp_path / name) as stack:
        assert answer(stack) == constant.BODY
        get = traffic.request("GET", constant.PATH, "here")
        report = uvloop.run(run(traffic.repeat(get), host="127.0.0.1", port=stack.port, connections=8, requests=500))
        assert report.statuses == {200: 500}
        assert report.failures == 0
        processes = stack.processes()
        assert len(processes) >= 3
    _, alive = psutil.wait_procs(processes, timeout=5)
    assert not alive


def test_only_the_stack_whose_turn_it_is_answers(tmp_path: Path) -> None:
    with (
        constant.running("listener", tmp_path / "one", replicas=1) as one,
        constant.running("listener", tmp_path / "two", replicas=1) as two,
    ):
        with taking_turns([one, two]) as turn:
            for chosen, other in ((one, two), (two, one), (one, two)):
                turn(chosen)
                assert answer(chosen) == constant.BODY
                with pytest.raises(TimeoutError):
                    answer(other, timeout_s=0.2)
        assert answer(one) == answer(two) == constant.BODY


def test_a_stack_that_does_not_come_up_says_where_to_look(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match=r"did not become ready; see .*nonsense\.log"),
        constant.running("nonsense", tmp_path / "nonsense"),
    ):
        pass

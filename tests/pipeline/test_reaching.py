"""Nothing is opened before all hops of a route can be reached."""

from __future__ import annotations

from bench_driver import Bench, finish, hops, opens

from swarmd.pipeline.driver import DriverState


def test_a_route_with_a_hop_that_cannot_be_reached_is_not_opened_at_all() -> None:
    bench = Bench()
    bench.unreachable = frozenset({"b"})
    bench.start()
    assert not opens(bench.found())
    assert bench.driver.attempts == 0
    assert "b" in bench.need.exclude
    assert set(opens(bench.found(hops("a 0:4", "c 4:8")))) == {"a", "c"}
    assert (bench.driver.attempts, bench.driver.epoch) == (1, 1)


def test_all_that_are_out_of_reach_are_replaced_together() -> None:
    bench = Bench()
    bench.run()
    bench.unreachable = frozenset({"a"})
    bench.lose("b")  # of a's death nothing has been heard yet
    assert not opens(bench.found(hops("c 4:8")))
    bench.wait(0.1)
    assert [str(span) for span in bench.need.spans] == ["0:4"]
    assert set(opens(bench.found(hops("d 0:4")))) == {"d", "c"}
    assert bench.driver.attempts == 2, "the first, and one for both losses"


def test_peers_that_stay_out_of_reach_are_tried_after_growing_pauses_and_given_up() -> None:
    bench = Bench()
    bench.unreachable = frozenset({"b"})
    bench.start()
    bench.found()
    for _ in range(40):
        if bench.driver.state is DriverState.DONE:
            break
        if bench.driver.state is DriverState.ROUTING and "b" in bench.need.exclude:
            bench.missing((4, 8))
        elif bench.driver.state is DriverState.ROUTING:
            bench.found()
        else:
            bench.wait(0.25)
    end = finish(bench.done)
    assert end is not None
    assert end.error is not None
    assert bench.driver.attempts == 0

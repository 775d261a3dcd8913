"""Who is to blame when a step did not end: pure, from what every rank said last."""

from __future__ import annotations

from collections.abc import Mapping

from smoke_tests.board import Failure
from smoke_tests.records import RankState


def blame(
    failure: Failure,
    world_size: int,
    done: Mapping[int, str],
    late: Mapping[int, tuple[int, str]],
    where: Mapping[int, str],
) -> tuple[RankState, ...]:
    """Return the state of every rank that did not pass the step.

    ``done`` holds what the ranks said that came to its end ("" for passed), ``late`` how many
    steps the others had begun at the limit, and where they were, ``where`` each rank's last
    place. A step waits for all ranks: of those that are late, the ones that have begun the fewest
    are missing, and the others were left waiting.
    """
    states = []
    fewest = min((count for count, _ in late.values()), default=0)
    for rank in range(world_size):
        at = late[rank][1] if rank in late else where.get(rank, "")
        if rank in failure.ranks:
            state = failure.state
            states.append(RankState(rank, state, at, failure.ranks[rank]))
        elif rank in done:
            if done[rank]:
                states.append(RankState(rank, "failed", at, done[rank]))
        elif failure.state == "hung" and not failure.ranks:
            if rank not in late:
                states.append(RankState(rank, "hung", at, "did not even say that it is late"))
            elif late[rank][0] == fewest:
                states.append(RankState(rank, "hung", at, "did not come in time"))
            else:
                states.append(RankState(rank, "left", at))
        else:
            states.append(RankState(rank, "left", at))
    return tuple(states)

"""The tape: claims by compare-and-set, frames in order, a fenced end."""

from __future__ import annotations

import asyncio

import pytest
from harness.world import WARM_UP, Inbox, World

from inferflux.broker.broker import Broker, Reply, Tape
from inferflux.broker.errors import ClaimLost
from inferflux.broker.subjects import RequestKey
from inferflux.broker.wire.requests import Claim, Head


async def warm_up(world: World, worker: Broker, owner: str, inbox: Inbox) -> None:
    """Return once the owner's inbox hears of every frame."""
    await world.warm_up(lambda: worker.send_frame(RequestKey(owner, WARM_UP), WARM_UP.encode()), inbox)


async def test_claim_is_won_once(world: World, key: RequestKey) -> None:
    first, second = await world.broker("worker"), await world.broker("worker")
    assert await first.last_claim(key) is None
    seq = await first.put_claim(key, Claim(worker="w1", at=1.5), expected_seq=0)
    with pytest.raises(ClaimLost) as lost:
        await second.put_claim(key, Claim(worker="w2"), expected_seq=0)
    assert lost.value.actual_seq in (seq, None)
    assert await second.last_claim(key) == (seq, Claim(worker="w1", at=1.5))
    newer = await second.put_claim(key, Claim(worker="w2", num_attempts=2), expected_seq=seq)
    assert newer > seq
    assert (await first.read_tape(key)).claim_seq == newer


async def test_who_has_a_claim_is_listed_until_the_purge(world: World, key: RequestKey) -> None:
    worker, api = await world.broker("worker"), await world.broker("api")
    await worker.send_frame(key, b"x")
    assert key not in await api.claimed()
    await worker.put_claim(key, Claim(worker="w"), expected_seq=0)
    assert key in await api.claimed()
    await worker.purge_tape(key)
    assert key not in await api.claimed()


async def test_of_many_contenders_one_wins(world: World, key: RequestKey) -> None:
    brokers = [await world.broker("worker") for _ in range(3)]
    claims = [
        broker.put_claim(key, Claim(worker=f"{number}{index}"), expected_seq=0)
        for index, broker in enumerate(brokers)
        for number in range(5)
    ]
    results = await asyncio.gather(*claims, return_exceptions=True)
    assert sorted(type(each).__name__ for each in results) == ["ClaimLost"] * 14 + ["int"]


async def test_frames_keep_their_order(world: World, key: RequestKey) -> None:
    worker, api = await world.broker("worker"), await world.broker("api")
    claim_seq = await worker.put_claim(key, Claim(worker="w"), expected_seq=0)
    sent = [worker.send_frame(key, b"%d" % number) for number in range(300)]
    seqs = await asyncio.gather(*sent)
    assert list(seqs) == sorted(seqs)
    tape = await api.read_tape(key)
    assert tape.claim == Claim(worker="w")
    assert tape.claim_seq == claim_seq
    assert [(each.seq, each.body) for each in tape.frames] == [(seq, b"%d" % number) for number, seq in enumerate(seqs)]
    assert (await api.read_tape(key, after_seq=seqs[297])).frames == tape.frames[298:]
    assert (await api.read_tape(key, after_seq=seqs[-1])).frames == ()


async def test_head_is_kept_beside_the_frames_until_the_purge(world: World, key: RequestKey) -> None:
    api, other = await world.broker("api"), await world.broker("api")
    head = Head(kind="chat", model="m", service_class="default", tenant="t", created=1.5, prompt=7)
    replies = Inbox()
    await api.listen_replies(key.owner, replies.put)
    await warm_up(world, other, key.owner, replies)
    assert await api.read_head(key) is None
    await api.send_head(key, head)
    seq = await other.send_frame(key, b"x")

    assert await other.read_head(key) == head
    assert key in await other.heads()
    assert [entry.seq for entry in (await other.read_tape(key)).frames] == [seq]
    assert (await replies.next(Reply)).seq == seq
    await other.purge_tape(key)
    assert await api.read_head(key) is None
    assert key not in await api.heads()


async def test_one_request_of_another_owner_can_be_followed(world: World, key: RequestKey) -> None:
    worker, api = await world.broker("worker"), await world.broker("api")
    replies = Inbox()
    subscription = await api.listen_replies(key.owner, replies.put, request=key.request)
    await world.warm_up(lambda: worker.send_frame(key, WARM_UP.encode()), replies)
    await worker.send_frame(RequestKey(key.owner, f"{key.request}-other"), b"x")
    await worker.send_frame(key, b"y")

    assert (await replies.next(Reply)).body == b"y"
    await subscription.close()


async def test_long_tape_is_read_whole(world: World, key: RequestKey) -> None:
    worker = await world.broker("worker")
    await asyncio.gather(*(worker.send_frame(key, b"x" * 100) for _ in range(2500)))
    assert len((await worker.read_tape(key)).frames) == 2500


async def test_tapes_do_not_mix(world: World, key: RequestKey) -> None:
    worker = await world.broker("worker")
    other = RequestKey(key.owner, f"{key.request}.more")
    await worker.send_frame(key, b"mine")
    await worker.send_frame(other, b"theirs")
    assert [each.body for each in (await worker.read_tape(key)).frames] == [b"mine"]


async def test_terminal_frame_is_fenced(world: World, key: RequestKey) -> None:
    zombie, worker = await world.broker("worker"), await world.broker("worker")
    old = await zombie.put_claim(key, Claim(worker="z"), expected_seq=0)
    new = await worker.put_claim(key, Claim(worker="w", num_attempts=2), expected_seq=old)
    with pytest.raises(ClaimLost):
        await zombie.put_terminal(key, b"zombie's end", fence=old)
    seq = await worker.put_terminal(key, b"end", fence=new)
    assert [(each.seq, each.body) for each in (await worker.read_tape(key)).frames] == [(seq, b"end")]


async def test_a_second_terminal_frame_under_one_claim_is_no_second_end(world: World, key: RequestKey) -> None:
    canceller, worker = await world.broker("api"), await world.broker("worker")
    fence = await worker.put_claim(key, Claim(worker="w", state="cancelled"), expected_seq=0)
    seq = await canceller.put_terminal(key, b"end", fence=fence)
    assert await worker.put_terminal(key, b"the same end", fence=fence) == seq
    assert [entry.body for entry in (await worker.read_tape(key)).frames] == [b"end"]


async def test_second_terminal_frame_under_a_fence_changes_nothing(world: World, key: RequestKey) -> None:
    worker, canceller = await world.broker("worker"), await world.broker("api")
    fence = await worker.put_claim(key, Claim(worker="w"), expected_seq=0)
    seq = await worker.put_terminal(key, b"end", fence=fence)
    assert await canceller.put_terminal(key, b"another end", fence=fence) == seq
    newer = await canceller.put_claim(key, Claim(worker="c", state="cancelled"), expected_seq=fence)
    assert await worker.put_terminal(key, b"end", fence=fence) == seq
    assert newer > seq
    assert [each.body for each in (await worker.read_tape(key)).frames] == [b"end"]


async def test_terminal_frame_follows_frames_on_their_way(world: World, key: RequestKey) -> None:
    worker = await world.broker("worker")
    fence = await worker.put_claim(key, Claim(worker="w"), expected_seq=0)
    for number in range(50):
        worker.send_frame(key, b"%d" % number)
    await worker.put_terminal(key, b"end", fence=fence)
    bodies = [each.body for each in (await worker.read_tape(key)).frames]
    assert bodies == [*(b"%d" % number for number in range(50)), b"end"]


async def test_purge_removes_one_request_only(world: World, key: RequestKey) -> None:
    worker = await world.broker("worker")
    other = RequestKey(key.owner, f"{key.request}x")
    await worker.put_claim(key, Claim(worker="w"), expected_seq=0)
    await asyncio.gather(worker.send_frame(key, b"a"), worker.send_frame(other, b"b"))
    await worker.purge_tape(key)
    assert await worker.read_tape(key) == Tape(None, 0, ())
    assert len((await worker.read_tape(other)).frames) == 1
    await worker.put_claim(key, Claim(worker="w"), expected_seq=0)


async def test_fill_grows_with_what_is_stored(world: World, key: RequestKey) -> None:
    worker = await world.broker("worker")
    before = await worker.tape_fill()
    await worker.send_frame(key, b"x" * 320_000)
    assert await worker.tape_fill() == pytest.approx(before + 320_000 / world.settings.tape.max_bytes, abs=0.002)
    await worker.purge_tape(key)


async def test_replies_are_the_tape_live(world: World, key: RequestKey) -> None:
    worker, api = await world.broker("worker"), await world.broker("api")
    inbox = Inbox()
    await api.listen_replies(key.owner, inbox.put)
    await warm_up(world, worker, key.owner, inbox)
    fence = await worker.put_claim(key, Claim(worker="w"), expected_seq=0)
    seqs = list(await asyncio.gather(*(worker.send_frame(key, b"%d" % number) for number in range(20))))
    seqs.append(await worker.put_terminal(key, b"20", fence=fence))
    replies = [await inbox.next(Reply) for _ in range(21)]
    assert [each.key for each in replies] == [key] * 21
    assert [each.body for each in replies] == [b"%d" % number for number in range(21)]
    assert [each.seq for each in replies] == seqs
    assert [each.last_seq for each in replies] == [0, *seqs[:-1]]
    assert inbox.empty


async def test_replies_reach_their_owner_alone(world: World, key: RequestKey) -> None:
    worker, api = await world.broker("worker"), await world.broker("api")
    mine, theirs = Inbox(), Inbox()
    await api.listen_replies(key.owner, mine.put)
    await api.listen_replies(f"{key.owner}x", theirs.put)
    await warm_up(world, worker, key.owner, mine)
    await warm_up(world, worker, f"{key.owner}x", theirs)
    await worker.send_frame(RequestKey(f"{key.owner}x", "r"), b"other")
    await worker.send_frame(key, b"own")
    assert (await mine.next(Reply)).body == b"own"
    assert (await theirs.next(Reply)).body == b"other"
    assert mine.empty


async def test_every_claim_is_kept_in_order(world: World, key: RequestKey) -> None:
    worker = await world.broker("worker")
    assert await worker.claims(key) == ()
    made = (Claim(worker="w1", at=1.0), Claim(worker="w2", state="released", at=2.0), Claim(worker="w3", at=3.0))
    seq = 0
    for claim in made:
        seq = await worker.put_claim(key, claim, expected_seq=seq)
        await worker.send_frame(key, b"frame")
    assert await worker.claims(key) == made

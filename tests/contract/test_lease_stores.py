"""What every LeaseStore promises."""

from __future__ import annotations

import pytest

from cachewarden.errors import BlackboardUnavailable


async def test_a_free_lease_is_taken_and_seen_by_all(leases):
    lease = await leases.store.acquire("shop", "first", 60_000)
    assert lease is not None
    assert (lease.service, lease.holder) == ("shop", "first")
    assert await leases.store.holder("shop") == lease


async def test_a_held_lease_is_refused_to_another(leases):
    lease = await leases.store.acquire("shop", "first", 60_000)
    assert await leases.store.acquire("shop", "second", 60_000) is None
    assert await leases.store.holder("shop") == lease


async def test_leases_of_two_services_are_independent(leases):
    assert await leases.store.acquire("shop", "first", 60_000) is not None
    assert await leases.store.acquire("search", "second", 60_000) is not None


async def test_a_renewal_keeps_the_epoch_and_moves_the_end(leases):
    lease = await leases.store.acquire("shop", "first", 60_000)
    leases.pass_time(5)
    renewed = await leases.store.acquire("shop", "first", 60_000)
    assert renewed.epoch == lease.epoch
    assert renewed.expires_at_ms > lease.expires_at_ms


async def test_a_takeover_after_expiry_has_a_higher_epoch(leases):
    lease = await leases.store.acquire("shop", "first", 20)
    leases.pass_time(40)
    assert await leases.store.holder("shop") is None
    taken = await leases.store.acquire("shop", "second", 60_000)
    assert taken.epoch > lease.epoch


async def test_a_lease_that_ran_out_keeps_its_epoch_where_nobody_else_had_it_in_between(leases):
    lease = await leases.store.acquire("shop", "first", 20)
    leases.pass_time(40)
    again = await leases.store.acquire("shop", "first", 60_000)
    assert again.epoch == lease.epoch


async def test_a_holder_that_comes_back_after_another_gets_a_higher_epoch(leases):
    lease = await leases.store.acquire("shop", "first", 20)
    leases.pass_time(40)
    taken = await leases.store.acquire("shop", "second", 20)
    leases.pass_time(40)
    again = await leases.store.acquire("shop", "first", 60_000)
    assert again.epoch > taken.epoch > lease.epoch


async def test_a_lease_that_was_given_back_after_it_ran_out_has_a_higher_epoch_the_next_time(leases):
    lease = await leases.store.acquire("shop", "first", 20)
    leases.pass_time(40)
    await leases.store.release(lease)
    again = await leases.store.acquire("shop", "first", 60_000)
    assert again.epoch > lease.epoch


async def test_a_released_lease_is_free_and_its_epoch_never_comes_back(leases):
    epochs = []
    for holder in ("first", "second", "first", "third"):
        lease = await leases.store.acquire("shop", holder, 60_000)
        epochs.append(lease.epoch)
        await leases.store.release(lease)
        assert await leases.store.holder("shop") is None
    assert epochs == sorted(set(epochs))


async def test_releasing_a_lease_that_was_taken_over_changes_nothing(leases):
    stale = await leases.store.acquire("shop", "first", 20)
    leases.pass_time(40)
    taken = await leases.store.acquire("shop", "second", 60_000)
    await leases.store.release(stale)
    assert await leases.store.holder("shop") == taken


async def test_an_old_epoch_of_the_same_holder_does_not_release_the_new_one(leases):
    stale = await leases.store.acquire("shop", "first", 20)
    leases.pass_time(40)
    await leases.store.acquire("shop", "second", 20)
    leases.pass_time(40)
    again = await leases.store.acquire("shop", "first", 60_000)
    await leases.store.release(stale)
    assert await leases.store.holder("shop") == again


async def test_a_lease_of_no_time_is_refused(leases):
    with pytest.raises(ValueError, match="at least a millisecond"):
        await leases.store.acquire("shop", "first", 0)


async def test_an_unreachable_server_is_reported_by_every_method(leases):
    lease = await leases.store.acquire("shop", "first", 60_000)
    leases.cut_off()
    for ask in (leases.store.acquire("shop", "first", 1000), leases.store.release(lease), leases.store.holder("shop")):
        with pytest.raises(BlackboardUnavailable):
            await ask

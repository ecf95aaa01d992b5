from __future__ import annotations

import pytest

from inferflux.broker.errors import ConfigError
from inferflux.config.settings import LlamaCppSettings, PagedKVSettings, RuntimeSettings, SchedulerSettings
from inferflux.workers.backends.llamacpp_sizing import KVSize, size_kv

GIB = 1 << 30
TOKEN_BYTES = 23_040


def sized(
    *, pages: int = 0, context: int = 0, slots: int = 32, page_size: int = 16, trained: int = 8192, free: int = 16 * GIB
) -> KVSize:
    settings = RuntimeSettings(
        scheduler=SchedulerSettings(max_batch_size=slots),
        paged_kv=PagedKVSettings(cpu_pages=pages, page_size=page_size),
        llamacpp=LlamaCppSettings(context_length=context),
    )
    return size_kv(settings, trained_length=trained, token_bytes=TOKEN_BYTES, available_bytes=free)


def test_with_nothing_set_slots_have_2048_tokens_and_take_a_quarter_of_the_free_memory_at_most() -> None:
    assert sized() == KVSize(32, 2048, 32 * 128, 32 * 2048 * TOKEN_BYTES)
    small = sized(free=GIB)
    assert small.context_length == 2048
    assert small.num_slots == 5
    assert small.kv_bytes <= GIB // 4


def test_a_model_trained_for_less_gets_no_longer_slots() -> None:
    assert sized(trained=512).context_length == 512
    assert sized(trained=512, context=4096).context_length == 512


def test_a_machine_without_memory_still_gets_one_slot() -> None:
    assert sized(free=1).num_slots == 1


def test_the_pages_are_divided_among_the_slots() -> None:
    size = sized(pages=4096)
    assert (size.num_slots, size.context_length, size.num_pages) == (32, 2048, 4096)


def test_a_longer_context_means_fewer_slots() -> None:
    size = sized(pages=4096, context=8192)
    assert (size.num_slots, size.context_length, size.num_pages) == (8, 8192, 4096)


def test_a_slot_holds_whole_pages() -> None:
    size = sized(context=1000, page_size=48)
    assert size.context_length == 960
    assert size.num_pages == size.num_slots * 20
    # llama.cpp rounds the stream up.
    assert size.kv_bytes == size.num_slots * 1024 * TOKEN_BYTES


@pytest.mark.parametrize(("pages", "context"), [(1, 0), (31, 0), (4, 1024)])
def test_too_few_pages_are_an_error_that_names_the_setting(pages: int, context: int) -> None:
    with pytest.raises(ConfigError, match=r"runtime\.paged_kv\.cpu_pages"):
        sized(pages=pages, context=context)

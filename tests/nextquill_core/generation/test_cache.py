import pytest

from nextquill_core.generation import cache
from tests.models import small_model


@pytest.mark.parametrize(("free", "room"), [(10_000, 13), (0, 1), (10**12, cache.MOST)])
def test_half_of_the_free_memory_holds_keys_and_values(free: int, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model("qwen2", num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, hidden_size=32)
    position = 2 * 3 * 2 * (32 // 4) * 4  # keys and values, layers, heads, numbers each, bytes
    assert position == 384
    monkeypatch.setattr(cache, "free_memory", lambda device: free)
    assert cache.room_in_memory(model) == room

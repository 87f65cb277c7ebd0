"""The compile cache: whole entries or none."""

from __future__ import annotations

from pathlib import Path

from llmos.compiler.support.cache import Cache, cache_key


def entries(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_an_entry_comes_back(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    assert cache.get(cache_key(["a"])) is None
    cache.put(cache_key(["a"]), b"data")
    assert cache.get(cache_key(["a"])) == b"data"


def test_keys_keep_parts_apart() -> None:
    assert cache_key(["ab", "c"]) != cache_key(["a", "bc"]) != cache_key(["abc"])


def test_a_damaged_entry_is_a_miss(tmp_path: Path) -> None:
    cache, key = Cache(tmp_path), cache_key(["a"])
    cache.put(key, b"data" * 100)
    [entry] = entries(tmp_path)
    entry.write_bytes(entry.read_bytes()[:-1])
    assert cache.get(key) is None


def test_a_folder_that_can_not_be_written_is_no_error(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    Cache(blocked / "below").put(cache_key(["a"]), b"data")
    assert Cache(blocked / "below").get(cache_key(["a"])) is None


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    import os

    cache = Cache(tmp_path, max_bytes=400)
    keys = [cache_key([name]) for name in "abc"]
    for age, key in enumerate(keys):
        cache.put(key, b"x" * 100)
        os.utime(tmp_path / key[:2] / key, (age, age))
    cache.get(keys[0])
    cache.put(cache_key(["d"]), b"x" * 100)
    assert [cache.get(key) is not None for key in keys] == [True, False, True]

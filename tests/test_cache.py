import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline.media.cache import cache_folder, cached, content_key, evict, look_up


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("RECAPTURE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def arrays(value=1.0, size=10):
    return {"z": np.full(size, value, np.float32)}


def never():
    raise AssertionError("computed again")


def test_a_result_is_computed_once(folder):
    first = cached("key", arrays)
    again = cached("key", never)
    assert cache_folder() == folder
    assert np.array_equal(first["z"], again["z"]) and again["z"].dtype == np.float32
    assert [path.name for path in folder.iterdir()] == ["key.npz"]


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "flipped"])
def test_a_damaged_entry_is_computed_again(folder, damage):
    cached("key", lambda: arrays(size=1000))
    path = folder / "key.npz"
    whole = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "text": b"not an archive",
            "cut": whole[:2000],
            "flipped": whole[:2000] + b"\xff\xff" + whole[2002:],  # only the checksum can tell
        }[damage]
    )
    assert cached("key", lambda: arrays(2.0))["z"][0] == 2
    assert cached("key", never)["z"][0] == 2


def test_a_failed_computation_leaves_nothing(folder):
    def fail():
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        cached("key", fail)
    assert not folder.exists() or not list(folder.iterdir())


def test_an_unwritable_folder_is_done_without(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RECAPTURE_CACHE", str(tmp_path / "file" / "cache"))
    assert cached("key", arrays)["z"][0] == 1


def test_the_least_recently_used_goes_first(folder):
    for name in ("a", "b", "c"):
        cached(name, lambda: arrays(size=1000))
    for age, name in enumerate(("c", "b", "a")):
        os.utime(folder / f"{name}.npz", (time.time() - 100 + age, time.time() - 100 + age))
    cached("c", never)  # c was the oldest, and is now the newest
    evict(limit_bytes=9800)
    assert sorted(path.stem for path in folder.iterdir()) == ["a", "c"]


def test_leftovers_of_dead_writers_go(folder):
    cached("key", arrays)
    (folder / "old.part").write_text("")
    (folder / "new.part").write_text("")
    os.utime(folder / "old.part", (0, 0))
    evict()
    assert sorted(path.name for path in folder.iterdir()) == ["key.npz", "new.part"]


def test_many_threads_may_write_one_key(folder):
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(cached("key", lambda: arrays(3.0, 100000))["z"].sum()))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [300000.0] * 8
    assert [path.name for path in folder.iterdir()] == ["key.npz"]


def test_keys_depend_on_content_not_on_names(tmp_path: Path):
    (tmp_path / "one").write_bytes(b"same")
    (tmp_path / "two").write_bytes(b"same")
    assert content_key(tmp_path / "one", 3) == content_key(tmp_path / "two", 3)
    assert content_key(tmp_path / "one", 3) != content_key(tmp_path / "one", 4)
    assert content_key("ab", "c") != content_key("a", "bc")
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights").write_bytes(b"1")
    before = content_key(model)
    (model / "weights").write_bytes(b"2")
    assert content_key(model) != before


@pytest.mark.parametrize(
    "other",
    [
        {"other": np.zeros(3)},
        {"z": np.ones((1, 3, 4), np.float32)},
        {"z": np.full((2, 3, 4), np.nan, np.float32)},
        {"z": np.ones((2, 3, 4), np.float64)},
    ],
)
def test_an_entry_that_is_whole_but_wrong_is_made_anew(folder, other):
    good = {"z": np.ones((2, 3, 4), np.float32)}
    cached("k", lambda: good)
    kept = (folder / "k.npz").read_bytes()
    np.savez(folder / "k.npz", **other)
    assert cached("k", lambda: good)["z"].shape == (2, 3, 4)
    assert np.array_equal(cached("k", never)["z"], good["z"])
    for at in range(len(kept)):  # never anything else than what was kept
        (folder / "k.npz").write_bytes(kept[:at] + bytes([kept[at] ^ 0xFF]) + kept[at + 1 :])
        found = look_up("k")
        assert found is None or (list(found) == ["z"] and np.array_equal(found["z"], good["z"]))

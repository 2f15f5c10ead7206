"""Files that are whole or not there, objects named by their content, the identity of tensors."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import random
import resource
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count, product
from pathlib import Path
from typing import Any

import pytest
import torch
from blake3 import blake3
from safetensors.torch import load_file
from torch import Tensor

from taps_registry.registry.errors import IntegrityError, StorageError
from taps_registry.registry.store import objects
from taps_registry.registry.store.files import CHUNK, checksum, in_place, sha256, write_file
from taps_registry.registry.store.objects import ObjectStore, StoredObject
from taps_registry.registry.store.tensors import OnDisk, digest, write_tensors

OLD, NEW = b"the old bytes", b"the new bytes, which are more"


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    (tmp_path / "objects").mkdir()
    return ObjectStore(tmp_path / "objects")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(NEW)
    return path


def drafts(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.endswith(".part")]


# Objects


def test_what_is_put_is_got_under_its_digest(store: ObjectStore, source: Path) -> None:
    stored = store.put(source)
    assert stored == StoredObject(hashlib.sha256(NEW).hexdigest(), len(NEW))
    assert store.get(stored.digest).read_bytes() == NEW
    assert store.get(stored.digest) == store.root / stored.digest[:2] / f"{stored.digest[2:]}.safetensors"


def test_a_later_change_of_the_source_does_not_reach_the_store(store: ObjectStore, source: Path) -> None:
    stored = store.put(source)
    source.write_bytes(OLD)
    assert store.get(stored.digest).read_bytes() == NEW


def test_the_same_content_is_kept_once_and_not_written_again(store: ObjectStore, source: Path, tmp_path: Path) -> None:
    first = store.put(source)
    written = store.get(first.digest).stat()
    (tmp_path / "another").write_bytes(NEW)
    assert store.put(tmp_path / "another") == first
    assert list(store) == [first]
    again = store.get(first.digest).stat()
    assert (again.st_ino, again.st_mtime_ns) == (written.st_ino, written.st_mtime_ns)


def test_iterating_names_every_object_in_order_and_nothing_else(store: ObjectStore, tmp_path: Path) -> None:
    made = []
    for number in range(20):
        (tmp_path / "one").write_bytes(b"x" * number)
        made.append(store.put(tmp_path / "one"))
    (store.root / "ab").mkdir(exist_ok=True)
    for stranger in ("ab/short.safetensors", f"ab/{'c' * 62}.txt", f"ab/.{'c' * 62}.safetensors.0123456789ab.part"):
        (store.root / stranger).write_bytes(b"")
    (store.root / "stranger.safetensors").write_bytes(b"")
    assert list(store) == sorted(made, key=lambda stored: stored.digest)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "..",
        "../x",
        "../../etc/passwd",
        "/etc/passwd",
        "/" * 64,
        "." * 64,
        "a" * 63,
        "a" * 65,
        "A" * 64,
        "g" * 64,
        "a" * 64 + "\n",
        "\n" + "a" * 64,
        "a" * 32 + "/" + "a" * 31,
        "a" * 32 + "\0" + "a" * 31,
        "a" * 62 + "..",
        "٣" * 64,
        "a" * 64 + "/../x",
    ],
)
def test_only_a_digest_becomes_a_path(store: ObjectStore, name: str) -> None:
    for use in (store.path, store.get):
        with pytest.raises(IntegrityError, match="is not a SHA-256 digest"):
            use(name)
    assert list(store.root.iterdir()) == []


def test_an_object_that_is_not_there_is_named(store: ObjectStore) -> None:
    with pytest.raises(IntegrityError, match=f"Object {'ab' * 32} is missing: .*taps-registry verify"):
        store.get("ab" * 32)


@pytest.mark.parametrize("damage", [b"", NEW[:-1], NEW + b"!", OLD])
def test_a_damaged_object_is_refused_and_a_put_repairs_it(store: ObjectStore, source: Path, damage: bytes) -> None:
    stored = store.put(source)
    store.path(stored.digest).write_bytes(damage)
    with pytest.raises(IntegrityError, match=f"is damaged: its SHA-256 is {hashlib.sha256(damage).hexdigest()}"):
        store.get(stored.digest)
    assert store.put(source) == stored
    assert store.get(stored.digest).read_bytes() == NEW


def test_a_checksum_that_fits_spares_the_digest(
    store: ObjectStore, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = store.put(source)
    digests: list[Path] = []

    def spied(path: Path) -> str:
        digests.append(path)
        return sha256(path)

    monkeypatch.setattr(objects, "sha256", spied)
    knowing = ObjectStore(store.root, {stored.digest: blake3(NEW).hexdigest()}.get)
    assert knowing.get(stored.digest) == store.path(stored.digest)
    assert digests == []
    assert store.get(stored.digest) == store.path(stored.digest)
    assert digests == [store.path(stored.digest)]


def test_a_good_object_is_not_refused_for_a_checksum(store: ObjectStore, source: Path) -> None:
    stored = store.put(source)
    for wrong in (blake3(OLD).hexdigest(), "", None):
        assert ObjectStore(store.root, lambda _, wrong=wrong: wrong).get(stored.digest).read_bytes() == NEW


@pytest.mark.parametrize("known", [blake3(NEW).hexdigest(), blake3(b"").hexdigest(), None])
def test_a_damaged_object_is_refused_whatever_checksum_is_known(
    store: ObjectStore, source: Path, known: str | None
) -> None:
    stored = store.put(source)
    store.path(stored.digest).write_bytes(OLD)
    with pytest.raises(IntegrityError, match=f"is damaged: its SHA-256 is {hashlib.sha256(OLD).hexdigest()}"):
        ObjectStore(store.root, lambda _: known).get(stored.digest)


@pytest.mark.parametrize("size", [0, 1, 2**18 - 1, 2**18, 2**18 + 1, 10**6])
def test_a_checksum_is_the_blake3_of_the_bytes(tmp_path: Path, size: int) -> None:
    content = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    (tmp_path / "file").write_bytes(content)
    assert checksum(tmp_path / "file") == blake3(content).hexdigest()


def test_a_copy_that_went_wrong_on_the_way_does_not_get_in(
    store: ObjectStore, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "copyfile", lambda source, target: Path(target).write_bytes(OLD))
    with pytest.raises(IntegrityError, match="is damaged"):
        store.put(source)
    assert list(store) == []
    assert drafts(store.root) == []


def test_leftovers_are_the_drafts_of_crashes(store: ObjectStore, source: Path) -> None:
    stored = store.put(source)
    assert store.leftovers() == []
    draft = store.path(stored.digest).with_name(f".{'c' * 62}.safetensors.0123456789ab.part")
    draft.write_bytes(b"half")
    assert store.leftovers() == [draft]


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, 2 * CHUNK + 1])
def test_sums_are_of_all_bytes_of_a_file(tmp_path: Path, size: int) -> None:
    content = random.Random(size).randbytes(size)
    (tmp_path / "file").write_bytes(content)
    assert sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()
    assert checksum(tmp_path / "file") == blake3(content).hexdigest()


def test_a_disk_that_cannot_be_read_is_an_error_of_ours(
    store: ObjectStore, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = store.put(source)

    class Failing(io.RawIOBase):
        def readinto(self, _: Any) -> int:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path, "open", lambda *_, **__: Failing())
    for known in (store, ObjectStore(store.root, lambda digest: "0" * 64)):
        with pytest.raises(StorageError, match="Cannot read"):
            known.get(stored.digest)


# Failures of the disk

Action = Callable[[Path], object]


def put_object(folder: Path) -> None:
    (folder / "source").write_bytes(NEW)
    ObjectStore(folder / "objects").put(folder / "source")


ACTIONS: Mapping[str, tuple[str, Action]] = {
    "write_file": ("file", lambda folder: write_file(folder / "file", NEW)),
    "write_tensors": ("file", lambda folder: write_tensors(folder / "file", {"a": torch.ones(3)})),
    "put": (
        f"objects/{hashlib.sha256(NEW).hexdigest()[:2]}/{hashlib.sha256(NEW).hexdigest()[2:]}.safetensors",
        put_object,
    ),
}
CALLS: Mapping[str, tuple[Any, str]] = {
    "fsync": (os, "fsync"),
    "open": (os, "open"),
    "replace": (Path, "replace"),
    "write": (Path, "write_bytes"),
    "copy": (shutil, "copyfile"),
    "mkdir": (Path, "mkdir"),
}


def fail_at(monkeypatch: pytest.MonkeyPatch, call: str, number: int, code: int) -> Callable[[], bool]:
    """Let the call fail the ``number``-th time, having written half; says whether it came to that."""
    place, name = CALLS[call]
    real = getattr(place, name)
    calls = count()
    failed = False

    def failing(*args: Any, **kwargs: Any) -> Any:
        nonlocal failed
        if (call == "write" and args[0].name == "source") or next(calls) != number:
            return real(*args, **kwargs)
        failed = True
        half = {"write": args[0], "copy": args[-1]}.get(call)
        if half is not None:
            with Path(half).open("wb") as file:
                file.write(NEW[: len(NEW) // 2])
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(place, name, failing)
    return lambda: failed


@pytest.mark.parametrize("before", ["nothing", "something"])
@pytest.mark.parametrize("call", list(CALLS))
@pytest.mark.parametrize("action", list(ACTIONS))
def test_a_disk_that_refuses_leaves_what_was_there(tmp_path: Path, action: str, call: str, before: str) -> None:
    """Whichever call it is that fails, with whichever error: the first, the second, until there is none left to fail.

    Only when the file has its new name already may it be the new one, and then the error must not deny it.
    """
    where, act = ACTIONS[action]
    (tmp_path / "clean" / "objects").mkdir(parents=True)
    act(tmp_path / "clean")
    new = (tmp_path / "clean" / where).read_bytes()
    old = OLD if before == "something" else None
    for number, code in product(range(20), (errno.ENOSPC, errno.EIO)):
        folder = tmp_path / f"{number} {code}"
        target = folder / where
        (folder / "objects").mkdir(parents=True)
        if old is not None:
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(old)  # for the store: an object that is damaged
        with pytest.MonkeyPatch.context() as monkeypatch:
            failed = fail_at(monkeypatch, call, number, code)
            said = failure(act, folder)
        found = target.read_bytes() if target.exists() else None
        assert drafts(folder) == []
        assert failed() == (said is not None)
        if said is None:
            assert found == new
            return
        assert os.strerror(code) in said
        assert found == (old if "Nothing was changed" in said else new), f"call {number}: {said}"
    pytest.fail("it never came to an end")


def failure(act: Action, folder: Path) -> str | None:
    try:
        act(folder)
    except StorageError as error:
        return str(error)
    return None


@contextmanager
def files_up_to(limit: int) -> Iterator[None]:
    """The system itself refuses to let a file of this process grow beyond this."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("action", ["bytes", "tensors", "object"])
def test_a_file_that_finds_no_room_half_way_leaves_the_old_one(tmp_path: Path, action: str) -> None:
    much = b"x" * 2_000_000
    (tmp_path / "source").write_bytes(much)
    store = ObjectStore(tmp_path / "objects")
    target = store.path(sha256(tmp_path / "source")) if action == "object" else tmp_path / "file"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(OLD)
    tensors = {"a": torch.ones(500_000)}
    with files_up_to(1_000_000), pytest.raises(StorageError, match="Nothing was changed"):  # noqa: PT012
        if action == "bytes":
            write_file(target, much)
        elif action == "tensors":
            write_tensors(target, tensors)
        else:
            store.put(tmp_path / "source")
    assert target.read_bytes() == OLD
    assert drafts(tmp_path) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_block_that_ends_badly_changes_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "file"
    target.write_bytes(OLD)
    with pytest.raises(error), in_place(target) as draft:  # noqa: PT012
        draft.write_bytes(NEW)
        raise error
    assert target.read_bytes() == OLD
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_whose_folder_is_not_there_is_a_storage_error(tmp_path: Path) -> None:
    for action in (lambda path: write_file(path, NEW), lambda path: write_tensors(path, {"a": torch.ones(1)})):
        with pytest.raises(StorageError, match=r"Cannot write .*nowhere.file"):
            action(tmp_path / "nowhere" / "file")


# Tensors


def model() -> dict[str, Tensor]:
    return {"b.weight": torch.arange(12.0).reshape(3, 4), "b.bias": torch.zeros(3), "a.count": torch.tensor(7)}


def test_the_identity_of_tensors_does_not_depend_on_their_order_or_memory() -> None:
    tensors = model()
    same = {name: tensors[name] for name in sorted(tensors)}
    same["b.weight"] = tensors["b.weight"].t().contiguous().t()
    assert not same["b.weight"].is_contiguous()
    assert list(same) != list(tensors)
    assert digest(same) == digest(tensors)
    assert digest({name: torch.nn.Parameter(t) if t.is_floating_point() else t for name, t in tensors.items()}) == (
        digest(tensors)
    )


def changes() -> dict[str, dict[str, Tensor]]:
    tensors = model()
    flipped = tensors["b.weight"].clone()
    flipped.view(torch.int32)[2, 3] ^= 1
    return {
        "a name": {**{n: t for n, t in tensors.items() if n != "b.bias"}, "b.bia": tensors["b.bias"]},
        "a shape": {**tensors, "b.weight": tensors["b.weight"].reshape(4, 3)},
        "a dtype": {**tensors, "b.bias": torch.zeros(3, dtype=torch.int32)},
        "a dimension of one": {**tensors, "a.count": torch.tensor([7])},
        "a bit": {**tensors, "b.weight": flipped},
        "the sign of zero": {**tensors, "b.bias": -torch.zeros(3)},
        "one more": {**tensors, "c": torch.zeros(0)},
        "one fewer": {"b.weight": tensors["b.weight"], "b.bias": tensors["b.bias"]},
        "two names exchanged": {
            "b.weight": tensors["b.weight"],
            "a.count": tensors["b.bias"],
            "b.bias": tensors["a.count"],
        },
    }


@pytest.mark.parametrize("what", list(changes()))
def test_the_identity_of_tensors_changes_with(what: str) -> None:
    assert digest(changes()[what]) != digest(model())


def test_the_identity_of_tensors_is_what_it_was_in_every_release() -> None:
    """Bases of existing registries are known by it."""
    expected = hashlib.sha256()
    expected.update(b"a\0int64\0()\0" + b"8\n" + (7).to_bytes(8, "little"))
    expected.update(b"b\0bfloat16\0(2,)\0" + b"4\n" + b"\x80\x3f\x00\x00")
    assert digest({"b": torch.tensor([1.0, 0.0], dtype=torch.bfloat16), "a": torch.tensor(7)}) == expected.hexdigest()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.uint8])
def test_tensors_read_back_as_they_were_written(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {
        "scalar": torch.ones((), dtype=dtype),
        "empty": torch.ones(0, 3, dtype=dtype),
        "x": torch.ones(2, dtype=dtype),
    }
    write_tensors(tmp_path / "file", tensors)
    found = OnDisk(tmp_path / "file")
    assert (len(found), set(found)) == (3, set(tensors))
    assert "y" not in found
    assert found["x"] is found["x"], "read once"
    assert {n: (t.shape, t.dtype) for n, t in found.items()} == {n: (t.shape, t.dtype) for n, t in tensors.items()}
    assert digest(found) == digest(tensors)


def test_tensors_that_share_memory_are_written_out_separately(tmp_path: Path) -> None:
    whole = torch.arange(6.0)
    tensors = {"whole": whole, "part": whole[2:4], "turned": whole.reshape(2, 3).t()}
    write_tensors(tmp_path / "file", tensors)
    assert digest(load_file(tmp_path / "file")) == digest(tensors)

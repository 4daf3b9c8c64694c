"""Atomic writes: after an error the old file or folder is there, complete, and nothing temporary beside it."""

from contextlib import suppress
from pathlib import Path

from opdlight.system.files import replacing, replacing_folder, write_text


def contents(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_file_is_replaced_or_stays(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "one\r\n")
    assert (tmp_path / "a.txt").read_bytes() == b"one\r\n"
    with suppress(ZeroDivisionError), replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert contents(tmp_path) == {"a.txt": "one\n"}


def test_a_folder_is_replaced_or_stays(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "model"
    killed = folder.with_name(".model")
    killed.mkdir(parents=True)
    (killed / "left.txt").write_text("by a killed process")
    with replacing_folder(folder) as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "a.txt").write_text("one")
        assert not folder.exists()
    assert contents(tmp_path) == {"made/model/inner/a.txt": "one"}
    with suppress(ZeroDivisionError), replacing_folder(folder) as temporary:
        (temporary / "a.txt").write_text("half")
        raise ZeroDivisionError
    assert contents(tmp_path) == {"made/model/inner/a.txt": "one"}
    with replacing_folder(folder) as temporary:
        (temporary / "b.txt").write_text("two")
    assert contents(tmp_path) == {"made/model/b.txt": "two"}

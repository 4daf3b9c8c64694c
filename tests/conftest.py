"""What tests of the training step share."""

import pytest

from tests.tiny_models import save_tiny


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return str(save_tiny(folder / "student", 1)), str(save_tiny(folder / "teacher", 2))

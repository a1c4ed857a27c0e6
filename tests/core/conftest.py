import jax
import pytest
from hypothesis import settings

settings.register_profile("core", deadline=None, max_examples=30, derandomize=True, print_blob=True)
settings.load_profile("core")


@pytest.fixture(scope="module")
def x64():
    """float64 for a whole test module: `pytestmark = pytest.mark.usefixtures("x64")`."""
    with jax.enable_x64(True):
        yield

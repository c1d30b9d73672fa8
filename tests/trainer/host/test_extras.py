import pytest

from trainer.host.extras import require_extra


def test_the_error_of_a_missing_library_names_its_extra():
    with (
        pytest.raises(ImportError, match="no_such_library") as raised,
        require_extra("plots", "a report", "no_such_library"),
    ):
        import no_such_library  # noqa: F401
    assert raised.value.__notes__ == [
        'a report needs no_such_library: pip install "entracte[plots]"'
    ]

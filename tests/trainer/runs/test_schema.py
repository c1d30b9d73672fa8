"""What makes a store of today of an older one."""

import pytest

from trainer.runs.schema import MIGRATIONS, VERSION, migrations


def test_each_version_comes_after_the_one_before():
    for found in range(VERSION + 1):
        wanted = [(n + 1, s) for n in range(found, VERSION) for s in MIGRATIONS[n]]
        assert migrations(found, "here") == wanted


def test_a_newer_store_is_refused():
    with pytest.raises(ValueError, match=f"the store here has version {VERSION + 1} .* newer"):
        migrations(VERSION + 1, "here")

"""Many seeds at once: gone on with to the same bits, and a plot of what they reached."""

import pytest

from trainer.configuration import Checkpointing, Logging, Schedule


@pytest.fixture(scope="module")
def population(script):
    """The script as a module."""
    return script("population")


def _printed(population, capsys, run, epochs):
    population.main(
        population.Config(
            run=run,
            epochs=epochs,
            members=3,
            envs=2,
            steps=8,
            batch_size=8,
            passes=1,
            schedule=Schedule("linear", steps=100),
            checkpointing=Checkpointing(max_cost=None),
            logging=Logging(console=False, tensorboard=False, report=False),
        )
    )
    return capsys.readouterr().out.splitlines()


def test_a_population_goes_on_with_the_same_bits(population, capsys, tmp_path):
    straight = _printed(population, capsys, tmp_path / "straight", 2)
    for epochs in (1, 2):
        parts = _printed(population, capsys, tmp_path / "parts", epochs)
    assert straight[0] == "0 of 3 members reached 475"
    assert straight[-1].startswith("fingerprint ")
    assert parts[-1] == straight[-1]
    assert (tmp_path / "parts" / "spread.png").read_bytes().startswith(b"\x89PNG")

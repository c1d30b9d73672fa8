"""What is no test here."""

collect_ignore = ["make_fixtures.py"]  # it needs torch and transformers

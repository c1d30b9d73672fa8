"""What is no test here."""

collect_ignore = ["make_adapters.py", "make_fixtures.py"]  # they need torch and transformers

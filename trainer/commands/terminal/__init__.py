"""Call commands and print their output."""

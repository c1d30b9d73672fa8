"""Parameters in files and tables: load, export, summarize."""

"""How values are shown: tables, curves and charts, as text, HTML and pictures."""

"""The databases of a store: connections, tables and statements that both of them know."""

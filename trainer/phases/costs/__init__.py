"""What a program costs, predicted from shapes: operations, memory, collectives."""

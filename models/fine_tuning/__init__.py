"""Networks made of trained ones: to train on, to adapt, or to compare with."""

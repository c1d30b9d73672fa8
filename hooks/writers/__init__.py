"""Writers: where metrics, images and text are written."""

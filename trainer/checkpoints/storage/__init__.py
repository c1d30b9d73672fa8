"""Where the checkpoints of a run lie: on a disk or in a bucket, and who may write there."""

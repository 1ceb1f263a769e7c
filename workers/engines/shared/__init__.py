"""What both engines use: slot arithmetic, rotary angles, the oracle draft, score buckets, refusals."""

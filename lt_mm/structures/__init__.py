"""What travels from the pipeline to the heads: the record of a replica, and its errors."""

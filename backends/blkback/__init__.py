"""blkback: the backend of block devices. See README.md."""

"""Benchmarks, each against its peer in the same run. See README.md in this folder."""

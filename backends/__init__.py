"""Backend drivers: block, network. Each a daemon of Dom0."""

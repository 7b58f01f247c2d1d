"""hyper: the hypervisor of one host. See hyper/README.md."""

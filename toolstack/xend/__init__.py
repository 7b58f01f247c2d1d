"""xend: the daemon that owns the domains of a host and answers xm."""

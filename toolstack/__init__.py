"""The toolstack: xend (the daemon that owns the domains) and its clients."""

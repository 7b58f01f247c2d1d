"""xenconsoled: every guest's console. See dom0/xenconsoled/README.md."""

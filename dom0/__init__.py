"""The processes of Dom0 and the control library they share."""

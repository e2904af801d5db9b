"""What people touch: commands, the HTTP interface, the supervisor and the demo."""

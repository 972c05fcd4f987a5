"""Reading what people's own files hold."""

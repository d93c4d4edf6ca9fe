"""The built-in NBD server: the fixed newstyle protocol, served on the engine's own event loop."""

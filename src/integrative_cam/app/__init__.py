"""The web page of `icam app`; see `server.serve`."""

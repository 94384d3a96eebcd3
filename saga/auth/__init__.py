"""Who asks over HTTP, what they may, and the record of it: tokens, API keys, scopes, audit."""

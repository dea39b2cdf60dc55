"""The page at `/`: a chat in the browser, rendered by the server and kept in the browser."""

"""A long run of many clients against one server, some of which are rude."""

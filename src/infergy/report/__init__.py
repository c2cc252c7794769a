"""Something to look at: figures out of records. Needs the extra ``report``, but for text."""

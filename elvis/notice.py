"""What every command, page, card and file of results says of its use."""

NOTICE = "Research use only: not a medical device, not for diagnosis or treatment."

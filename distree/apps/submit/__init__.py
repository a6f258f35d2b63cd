"""`distree submit`: send files to a running origin whose source is `mqtt`, and print their results."""

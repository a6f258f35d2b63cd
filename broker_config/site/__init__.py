"""A broker for one site, in a folder: its users, their secrets, and all that mosquitto needs to run by it."""

"""The robot side: wire protocol, server, client, control loop, safety, episode log. No torch, no simulator."""

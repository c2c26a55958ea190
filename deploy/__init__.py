"""The robot side: wire protocol, policy server and client, control loop, safety, episode log. No torch, no simulator."""

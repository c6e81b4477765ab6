#!/usr/bin/env python3
"""A WebSocket server and client by the package `websockets`.

`serve PORT IDENTITY` echoes. `hold URL SECONDS` opens one connection, sends a message every 100 ms for that long and checks
each echo, then prints the identity that answered and how many messages went round.
"""
import asyncio
import sys

import websockets


async def serve(port, identity):
    async def echo(socket):
        await socket.send(identity)
        async for message in socket:
            await socket.send(message)

    async with websockets.serve(echo, None, int(port)):
        print("ready", flush=True)
        await asyncio.Future()


async def hold(url, seconds):
    async with websockets.connect(url, open_timeout=10) as socket:
        identity = await socket.recv()
        rounds = int(float(seconds) * 10)
        for n in range(rounds):
            await socket.send(f"message {n}")
            answer = await asyncio.wait_for(socket.recv(), 10)
            assert answer == f"message {n}", answer
            await asyncio.sleep(0.1)
        print(identity, rounds)


asyncio.run({"serve": serve, "hold": hold}[sys.argv[1]](*sys.argv[2:]))

"""What agents import to use a swarm: an async client, a sync one, and the policy of resuming.

Runs on grpcio and protobuf alone. Tokenising, routing and sampling are the nodes' business.
"""

from swarmd.client.async_client import AsyncClient
from swarmd.client.generation import Generation
from swarmd.client.resume import ResumePolicy
from swarmd.client.sync_client import Client, SyncGeneration

__all__ = ["AsyncClient", "Client", "Generation", "ResumePolicy", "SyncGeneration"]
